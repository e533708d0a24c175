"""Bring MLflow's two databases up to date before its server starts, one process after the other.

All replicas, and all processes of a server, start at the same moment, and MLflow's migrations take no lock in the
database: on a new one, one of two that ran together ended with an error (tried, MLflow 3.17.2, both databases). In
PostgreSQL the one that has the lock works here, and the others wait and find nothing to do. Run as a program it then
becomes the command that follows, if one does:

    python -m tasks.migrating mlflow server
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["migrate"]

LOCK = int.from_bytes(b"ltsft", "big")
"""Of PostgreSQL's advisory locks; they are each database's own."""


def migrate(backend: str, users: str) -> None:
    """Create or change the tables of both databases as this version of MLflow wants them.

    Args:
        backend: SQLAlchemy's address of the database of runs and models.
        users: of the database of MLflow's basic authentication.
    """
    from mlflow.db import upgrade
    from mlflow.server.auth.db.utils import migrate as upgrade_users
    from sqlalchemy import create_engine

    with _alone(create_engine(backend)):
        upgrade.callback(backend)  # type: ignore[misc]  # what `mlflow db upgrade` does
    with _alone(create_engine(users)) as engine:
        upgrade_users(engine, "head")


@contextmanager
def _alone(engine: Engine) -> Iterator[Engine]:
    """Wait for whoever migrates this database now. A process that dies lets go of the lock: it is its connection's."""
    from sqlalchemy import text

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":  # a file of SQLite has one pod, and MLflow locks it itself
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        yield engine
        connection.invalidate()  # closes it for good, and with it the lock
    engine.dispose()


def main(command: list[str]) -> None:
    """Migrate the databases that the server's environment and its file basic_auth.ini name, then become a command."""
    from mlflow.server.auth.config import read_auth_config

    migrate(os.environ["MLFLOW_BACKEND_STORE_URI"], read_auth_config().database_uri)
    if command:
        os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
