"""MLflow's database: made whole or not at all, waited for while it is busy, and read without stopping for garbage."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

Answer = TypeVar("Answer")
_BUSY_RETRIES = 5


@contextmanager
def no_collection() -> Iterator[None]:
    """Put off garbage collection: MLflow makes an object of each metric, parameter and tag, and two thirds of the time
    of a large query went into looking through them (3,000 runs: 8 s with, 2.7 s without).
    """
    paused = gc.isenabled()  # of several threads, only the one that paused it starts it again
    if paused:
        gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def create_sqlite(uri: str) -> None:
    """Create MLflow's tables in another file, then rename it: nobody sees, and no kill leaves, half a database."""
    found = re.fullmatch(r"sqlite:///([^?]+)", uri)
    if not found or found[1] == ":memory:":
        return
    database = Path(found[1])
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if database.exists():
            return
        with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-") as folder:
            whole = Path(folder) / database.name
            whole.write_bytes(_empty_database())
            whole.replace(database)


@cache
def _empty_database() -> bytes:
    """Let MLflow make its tables, once in a process: its sixty migrations take more than a second each time."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="mlflow-") as folder:
        database = Path(folder) / "empty.db"
        MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments(max_results=1)
        return database.read_bytes()


def patiently(action: Callable[[], Answer]) -> Answer:
    """Do it; while the database says it is busy, wait and do it again (each wait twice as long, 31 s in all)."""
    from mlflow.exceptions import MlflowException

    for attempt in range(_BUSY_RETRIES + 1):
        try:
            return action()
        except MlflowException as error:
            if error.error_code != "TEMPORARILY_UNAVAILABLE" or attempt == _BUSY_RETRIES:
                raise
            time.sleep(2**attempt)
    raise AssertionError("unreachable")
