"""The other nodes of a training: they wait for the first one, train with it, and go when it is done.

    LTSFT_FIRST_NODE=HOST python -m tasks.training.joining 1       by hand, beside a flow on HOST; 1 is the index of
    this node

Nothing here talks to Prefect, MLflow or S3. See tasks/training/nodes.py for the first node's part.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, but in no __all__

from ltsft.errors import LtsftError
from tasks.quiet import quiet_services
from tasks.settings import read_settings
from tasks.training.nodes import ANSWER, FAILED, JOB, LEFT, LOOK_SECONDS, OVER, PARTING_SECONDS, ready
from tasks.training.together import STOP, JointTraining, end_processes, prepare, start_processes

_LOG = logging.getLogger(__name__)


def join(index: int) -> int:
    """Be one of the other nodes.

    Args:
        index: of this node, from 1.

    Returns:
        The exit code: 0 once the first node has said that it is done, or is gone. Its pod says how the job ends.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    address = find_first_node(index)
    store = _reach(address, asked)
    if store is None:
        return 1
    joint = JointTraining.model_validate_json(store.get(JOB))
    with tempfile.TemporaryDirectory(prefix="ltsft-node-") as folder:
        try:
            prepare(joint, Path(folder))
        except LtsftError as error:
            store.set(FAILED, f"node {index}: {type(error).__name__}: {error}")
            raise
        _LOG.info("node %d of %d trains with %s", index, joint.nodes, address)
        store.set(ready(index), "")
        return _train(joint, Path(folder), index, address, store, asked)


def _train(
    joint: JointTraining, folder: Path, index: int, address: str, store: TCPStore, asked: threading.Event
) -> int:
    errors = sys.stderr.fileno()
    running = start_processes(joint, folder, node=index, first=address, output=errors, errors=errors)
    end = None
    while not is_over(store):
        if asked.is_set() and not (folder / STOP).exists():
            (folder / STOP).touch()
            store.set(LEFT, "")
        if running.poll() is not None:
            end = end or time.monotonic() + 2 * PARTING_SECONDS
            if time.monotonic() > end:
                _LOG.error("the processes of node %d ended with %d, and the first node does not", index, running.poll())
                return 1
        time.sleep(LOOK_SECONDS)
    end_processes(running)
    _LOG.info("the first node is done")
    return 0


def find_first_node(index: int) -> str:
    """Give the address of the first node: what is set, or else its name in the headless service of the job.

    The pods of an Indexed job are called ``<job>-<index>``.
    """
    if (named := read_settings().first_node) is not None:
        return named
    name, _, domain = socket.getfqdn().partition(".")
    return f"{name.removesuffix(f'-{index}')}-0.{domain}".rstrip(".")


def is_over(store: TCPStore) -> bool:
    """Whether the first node is done with the training, or gone."""
    try:
        return bool(store.check([OVER]))
    except RuntimeError:  # its store is gone
        return True


def _reach(address: str, asked: threading.Event) -> TCPStore | None:
    """Wait until the first node has something to train; None if this node is asked to stop meanwhile."""
    port = read_settings().nodes_port
    _LOG.info("looking for the first node at %s:%d", address, port)
    while not asked.wait(1.0):
        try:
            with socket.create_connection((address, port), timeout=ANSWER.total_seconds()):
                pass
            return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=ANSWER)
        except (OSError, RuntimeError):  # it has no name yet, or does not train yet
            continue
    return None


if __name__ == "__main__":
    quiet_services()
    sys.exit(join(int(sys.argv[1])))
