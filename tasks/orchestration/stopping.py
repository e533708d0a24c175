"""Being asked to stop: a pod that is evicted gets SIGTERM, and a while later SIGKILL; a person presses Ctrl-C.

Both become an exception at whatever the main thread is doing (Prefect sees to SIGTERM, and takes it for an order only
as long as its own handler is in place). In the middle of an optimizer step that would leave weights of no step at all.
So a training runs in a thread beside: the exception hits the main thread, which waits, the training is asked to stop,
saves a checkpoint between two steps and ends, and then the exception goes up.
"""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


def run_stoppable(work: Callable[[Callable[[], bool]], _T]) -> _T:
    """Do something long that ends early, in good order, when the process is asked to stop.

    Args:
        work: gets a function that says whether it should stop.

    Returns:
        What the work gave.

    Raises:
        BaseException: what the work raised; or what the main thread was interrupted with, once the work has ended. A
            second interruption does not wait for the work.
    """
    if threading.current_thread() is not threading.main_thread():  # interruptions go there alone
        return work(lambda: False)
    beside = _Beside(work)
    try:
        beside.done.wait()
    except BaseException:
        beside.asked.set()
        beside.done.wait()
        if beside.error is not None:
            _LOG.warning("%s", beside.error)
        raise
    return beside.result()


class _Beside(Generic[_T]):
    """Work in a thread of its own, with the context variables of the one that starts it."""

    def __init__(self, work: Callable[[Callable[[], bool]], _T]) -> None:
        self.asked, self.done = threading.Event(), threading.Event()
        self._given: list[_T] = []
        self.error: BaseException | None = None
        context = contextvars.copy_context()

        def run() -> None:
            try:
                self._given.append(context.run(work, self.asked.is_set))
            except BaseException as error:
                self.error = error
            finally:
                self.done.set()

        threading.Thread(target=run, name="training", daemon=True).start()

    def result(self) -> _T:
        """Give what the work gave, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._given[0]


def end_with_parent(parent: int | None = None) -> None:
    """End this process when the one that started it is gone: torchrun gives each a session of its own.

    A process that waits for another in torch's C++ code looks at nothing else, and would hold its GPU.

    Args:
        parent: its process number, where it may be gone before this is called; that of now if None.
    """
    started_by = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == started_by:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
