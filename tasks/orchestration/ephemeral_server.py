"""Prefect's ephemeral server, in a session of its own.

Prefect's own is in the group of the command: Ctrl-C in a terminal ends both, and the client of a flow run whose end is
to be told looks for its server for minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from tasks.orchestration.stopping import end_with_parent


class EphemeralServer(SubprocessASGIServer):
    """What Prefect takes and starts where no API is set, once there is one; ends with the process that started it."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        told = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tasks.orchestration.ephemeral_server", str(self.port), str(os.getpid())],
            env={**os.environ, **told, **get_current_settings().to_environment_variables(exclude_unset=True)},
            start_new_session=True,
        )


def main(port: int, parent: int) -> None:
    """Serve Prefect's API on this machine until told to end, or until the process that started it is gone.

    Raises:
        SystemExit: it cannot start; with status 3 where the port is taken, which Prefect looks for.
    """
    import uvicorn

    end_with_parent(parent)
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
