"""Prefect's server for one command, where no other is set: a process in a session of its own.

Prefect would start one itself, in the group of the command: Ctrl-C in a terminal ends both, and the client of a flow
run whose end is to be told looks for its server for minutes. It would also import the whole server into the command.
"""

from __future__ import annotations

import atexit
import os
import socket
import ssl
import subprocess
import sys
import time

import httpx

from ltsft.errors import ServiceError

_LOOK_SECONDS = 2.0
"""Between looks at whether the process is still there."""


class EphemeralServer:
    """Prefect's API on this machine for as long as this process lives.

    Args:
        environment: more variables for the server.

    Attributes:
        url: of the API.
    """

    def __init__(self, **environment: str) -> None:
        told = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        with socket.create_server(("127.0.0.1", 0)) as opened:  # nobody can take the port before it does
            self.url = f"http://127.0.0.1:{opened.getsockname()[1]}/api"
            handed = opened.fileno()
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "tasks.orchestration.ephemeral_server", str(handed), str(os.getpid())],
                env={**os.environ, **told, **environment},
                start_new_session=True,
                pass_fds=[handed],
            )
        atexit.register(self.stop)  # what Prefect still has to send, it sends before

    def wait(self, seconds: float) -> None:
        """Wait until it answers.

        Raises:
            ServiceError: it ended, or does not answer in time.
        """
        end = time.monotonic() + seconds
        # Certificates are read for nothing where it speaks plain HTTP with this machine: a context that trusts none.
        with httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=_LOOK_SECONDS) as client:
            while not self._answers(client):
                if (code := self.process.poll()) is not None:
                    raise ServiceError(f"Prefect's server could not start: it ended with status {code}")
                if time.monotonic() > end:
                    raise ServiceError(
                        f"Prefect's server does not answer after {seconds:.0f} s; on a busy machine set "
                        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS to more"
                    )

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # all is done: no traceback for the impatient
                self.process.kill()
                self.process.wait()

    def _answers(self, client: httpx.Client) -> bool:
        try:
            return client.get(f"{self.url}/health").is_success
        except httpx.TimeoutException:  # it has the port, and listens to nobody yet
            return False
        except httpx.HTTPError:
            time.sleep(0.1)
            return False


def main(handed: int, parent: int) -> None:
    """Serve Prefect's API on this machine until told to end, or until the process that started it is gone.

    Args:
        handed: number of an open socket that listens.
        parent: number of the process that started it.
    """
    import uvicorn

    from ltsft.heap import collect_seldom
    from tasks.orchestration.stopping import end_with_parent

    collect_seldom()
    end_with_parent(parent)
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    with socket.socket(fileno=handed) as opened:
        uvicorn.Server(config).run(sockets=[opened])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
