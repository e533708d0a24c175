"""One training by several nodes: how they meet, and how they part.

In a cluster the nodes are the pods of one Indexed job (infra/work-pools/ltsft-gpu.json). The pod of index 0 runs the
flow, which alone talks to Prefect, MLflow and S3. The others (tasks/training/joining.py) look for it under its name in
the headless service, are told what is trained, join with processes of their own, and go when it ends. They share the
data and the base through the volume of the cache, and get the rest (checkpoint, SFTs of source languages) from the
processes of the first node.

Where they meet is a `TCPStore` in the flow's process. It asks for no password: the network policy `nodes` lets nobody
in but pods of trainings.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, but in no __all__

from ltsft.errors import InterruptedTraining, ServiceError
from tasks.pod import FIRST_PROCESS
from tasks.settings import read_settings

JOB, LEFT, FAILED, OVER = "job", "left", "failed", "over"
"""What is written in the store: what is trained, that a node was asked to stop or failed, that the training is over."""
ANSWER = timedelta(seconds=10)
LOOK_SECONDS = 0.2
GATHER_SECONDS = 3600.0
"""How long the first node waits for the others; the reconciler ends a run whose pod finds no node earlier."""
PARTING_SECONDS = 30.0
"""How long the first node waits to be asked to stop itself, after another one was or is lost."""
_LOG = logging.getLogger(__name__)


def ready(index: int) -> str:
    """Give what stands in the store once this node is ready to train."""
    return f"ready {index}"


class Meeting:
    """Where the other nodes come to; a context manager in the process of the flow.

    Args:
        nodes: how many there are, the first included.
        told: what the others are told, as JSON.
    """

    def __init__(self, nodes: int, told: str) -> None:
        self._nodes = nodes
        self._told = told

    def __enter__(self) -> Meeting:
        port = read_settings().nodes_port
        try:
            self._store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=ANSWER)
        except RuntimeError as error:
            raise ServiceError(f"the nodes cannot meet at port {port} (LTSFT_NODES_PORT): {error}") from error
        self._store.set(JOB, self._told)
        _LOG.info("waiting for %d other nodes at port %d of %s", self._nodes - 1, port, socket.gethostname())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._store.set(OVER, "")
        time.sleep(2 * LOOK_SECONDS)  # they see it, or else that there is no store any more
        del self._store

    def gather(self, should_stop: Callable[[], bool]) -> None:
        """Wait until all are here and ready.

        Raises:
            InterruptedTraining: this node or another one was asked to stop.
            ServiceError: another one failed, or not all came in time.
        """
        end = time.monotonic() + GATHER_SECONDS
        missing = list(range(1, self._nodes))
        while missing:
            if should_stop() or self._store.check([LEFT]):
                raise InterruptedTraining("asked to stop while waiting for other nodes")
            if self._store.check([FAILED]):
                raise ServiceError(self._store.get(FAILED).decode())
            if time.monotonic() > end:
                raise ServiceError(
                    f"nodes {missing} of {self._nodes} did not come within {GATHER_SECONDS:.0f} s; in a cluster they "
                    "are pods of the same job, elsewhere see tasks/training/joining.py"
                )
            time.sleep(LOOK_SECONDS)
            missing = [index for index in missing if not self._store.check([ready(index)])]


def pass_on_stop(should_stop: Callable[[], bool]) -> None:
    """Have the first node go, too, after another one was asked to: as if it had been asked itself.

    Prefect then reschedules the run as it does after an eviction, and the attempt does not count as a crash.
    """
    if (process := os.environ.get(FIRST_PROCESS)) is not None and not should_stop():
        _LOG.warning("another node was asked to stop; this one goes, too")
        os.kill(int(process), signal.SIGTERM)
        await_stop(should_stop)


def await_stop(should_stop: Callable[[], bool]) -> None:
    """Wait to be asked to stop, where somebody will ask: a cluster ends all pods of a job of which one is lost."""
    end = time.monotonic() + (PARTING_SECONDS if FIRST_PROCESS in os.environ else 0.0)
    while not should_stop() and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
