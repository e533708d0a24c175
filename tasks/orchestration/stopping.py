"""Being asked to stop: a pod that is evicted gets SIGTERM, and a while later SIGKILL; a person presses Ctrl-C.

Both become an exception at whatever the main thread is doing (Prefect sees to SIGTERM, and takes it for an order only
as long as its own handler is in place). In the middle of an optimizer step that would leave weights of no step at all.
So a training runs in a thread beside: the exception hits the main thread, which waits, the training is asked to stop,
saves a checkpoint between two steps and ends, and then the exception goes up.

That exception may get lost: Prefect's engine turns one at the start of a task into another, and drops one that comes
while a heartbeat thread is joined; Python drops one in the callback of a weak reference; some libraries catch it while
they are imported. So the signals themselves are remembered, by the way that Python has for event loops
(`signal.set_wakeup_fd`): no handler is replaced, whatever handles the signal. It is looked at before each product, task
and cell, and by a training after each step.
"""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_ORDERS = {int(signal.SIGINT), int(signal.SIGTERM)}


class _Remembered:
    """The signals that came to this process since the outermost block of `remembering_orders` was entered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came: set[int] = set()
        self._reader: socket.socket | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        if self._reader is not None or threading.current_thread() is not threading.main_thread():
            yield  # somebody further out listens; or signals do not come here
            return
        self._reader, writer = socket.socketpair()
        with self._reader, writer:
            self._reader.setblocking(False)
            writer.setblocking(False)
            before, told = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False), sys.unraisablehook
            sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else told(lost)
            try:
                yield
            finally:
                sys.unraisablehook = told
                signal.set_wakeup_fd(before)
                self._reader, self._came = None, set()

    def order(self) -> int | None:
        """Give the signal that asked to stop, if one did."""
        with self._lock:
            try:
                while self._reader is not None:
                    self._came.update(self._reader.recv(256))
            except BlockingIOError:
                pass
            return next(iter(sorted(self._came & _ORDERS)), None)


_REMEMBERED = _Remembered()


@contextmanager
def remembering_orders() -> Iterator[None]:
    """Remember each order to stop that comes while the outermost such block runs, whatever becomes of its exception."""
    with _REMEMBERED.listening():
        yield


def is_asked_to_stop() -> bool:
    """Whether an order to stop came since it is listened for."""
    return _REMEMBERED.order() is not None


def stop_if_asked() -> None:
    """Stop here if an order to do so came, and its exception was lost.

    Raises:
        KeyboardInterrupt: a person asked.
        TerminationSignal: whoever runs this process asked (SIGTERM).
    """
    order = _REMEMBERED.order()
    if order == signal.SIGINT:
        raise KeyboardInterrupt
    if order is not None:
        from prefect.exceptions import TerminationSignal

        raise TerminationSignal(signal=order)


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
        return work(is_asked_to_stop)
    beside = _Beside(work)
    try:
        beside.done.wait()
        stop_if_asked()
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
                self._given.append(context.run(work, lambda: self.asked.is_set() or is_asked_to_stop()))
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
