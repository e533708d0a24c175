"""MLflow's databases are brought up to date by one process at a time."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from servers import postgres, postgres_programs

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


@pytest.mark.skipif(
    postgres_programs() is None, reason="PostgreSQL is not here: no initdb on the path or in /usr/lib/postgresql"
)
def test_two_replicas_that_start_at_once_make_one_database_of_each() -> None:
    with postgres("mlflow", "mlflow_auth") as server:
        databases = [f"postgresql+psycopg2://{server}/{name}" for name in ("mlflow", "mlflow_auth")]

        done = subprocess.run([sys.executable, "-c", TWO_AT_ONCE, *databases], capture_output=True, text=True)

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
