"""Prefect's server for one command, where no other is set: a process in a session of its own.

Prefect would start one itself, in the group of the command: Ctrl-C in a terminal ends both, and the client of a flow
run whose end is to be told looks for its server for minutes. It would also import the whole server into the command.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time

import httpx

from ltsft.errors import ServiceError

_PORT_IS_TAKEN = 3  # what uvicorn ends with
_POLL_SECONDS = 0.1


class EphemeralServer:
    """Prefect's API on this machine for as long as this process lives.

    Args:
        environment: more variables for the server.

    Attributes:
        url: of the API.
    """

    def __init__(self, **environment: str) -> None:
        self._environment = environment
        self._start()
        atexit.register(self.stop)  # what Prefect still has to send, it sends before

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        told = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tasks.orchestration.ephemeral_server", str(port), str(os.getpid())],
            env={**os.environ, **told, **self._environment},
            start_new_session=True,
        )

    def wait(self, seconds: float) -> None:
        """Wait until it answers.

        Raises:
            ServiceError: it ended, or does not answer in time.
        """
        end = time.monotonic() + seconds
        with httpx.Client(verify=False, timeout=5) as client:  # noqa: S501  # reading certificates takes 30 ms
            while not self._answers(client):
                code = self.process.poll()
                if code == _PORT_IS_TAKEN:
                    self._start()
                elif code is not None:
                    raise ServiceError(f"Prefect's server could not start: it ended with status {code}")
                elif time.monotonic() > end:
                    raise ServiceError(
                        f"Prefect's server does not answer after {seconds:.0f} s; on a busy machine set "
                        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS to more"
                    )
                time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _answers(self, client: httpx.Client) -> bool:
        try:
            return client.get(f"{self.url}/health").is_success
        except httpx.HTTPError:
            return False


def main(port: int, parent: int) -> None:
    """Serve Prefect's API on this machine until told to end, or until the process that started it is gone.

    Raises:
        SystemExit: it cannot start; with status 3 where the port is taken.
    """
    import uvicorn

    from tasks.orchestration.stopping import end_with_parent

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
