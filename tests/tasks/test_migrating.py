"""MLflow's databases are brought up to date by one process at a time."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TWO_AT_ONCE = """
import multiprocessing, sys
import mlflow.server.auth.db.utils
from mlflow.store.db import utils
from tasks.migrating import migrate

fork = multiprocessing.get_context("fork")
gate = fork.Barrier(2)

def work():
    gate.wait()
    migrate(*sys.argv[1:])

both = [fork.Process(target=work) for _ in range(2)]
for process in both:
    process.start()
for process in both:
    process.join()
sys.exit(sum(process.exitcode != 0 for process in both))
"""


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The address of a PostgreSQL with two empty databases, without a name at its end."""
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (initdb, postgres)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = tmp_path / "postgres"
    data.mkdir()
    more: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.geteuid() == 0:  # it refuses to run as root
        more["user"] = "nobody"
        shutil.chown(data, "nobody")
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o011)
    subprocess.run([initdb, "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync"], check=True, **more)
    options = ["-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    process = subprocess.Popen([server, "-D", data, *options], **more)
    try:
        create_databases(port)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def create_databases(port: int) -> None:
    import psycopg2

    deadline = time.monotonic() + 120
    while True:
        try:
            connection = psycopg2.connect(host="127.0.0.1", port=port, user="mlflow", dbname="postgres")
            break
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.2)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE mlflow")
        cursor.execute("CREATE DATABASE mlflow_auth")
    connection.close()


def test_two_replicas_that_start_at_once_make_one_database_of_each(postgres: str) -> None:
    command = [sys.executable, "-c", TWO_AT_ONCE, f"{postgres}/mlflow", f"{postgres}/mlflow_auth"]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, f"{done.returncode} of 2 failed: {done.stderr[-2000:]}"


def test_the_server_starts_when_its_databases_are_ready(tmp_path: Path) -> None:
    settings = tmp_path / "basic_auth.ini"
    settings.write_text(
        f"[mlflow]\ndatabase_uri = sqlite:///{tmp_path}/users.db\nadmin_username = x\ndefault_permission = READ\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "not-used-here",
    }
    command = [sys.executable, "-m", "tasks.migrating", "echo", "the server"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "the server"
    for file, table in (("mlflow.db", "experiments"), ("users.db", "users")):
        assert sqlite3.connect(tmp_path / file).execute(f"SELECT count(*) FROM {table}").fetchone() is not None
