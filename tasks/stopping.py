"""Being asked to stop: a pod that is evicted gets SIGTERM, and a while later SIGKILL.

Prefect turns SIGTERM into an exception at whatever the process is doing. In the middle of an optimizer step that would
leave weights of no step at all, so a training looks for the request between two steps instead, saves a checkpoint and
ends; then the exception goes up as Prefect expects it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from prefect.exceptions import TerminationSignal

from ltsft.errors import InterruptedTraining


@contextmanager
def stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back inside the block; a second one is not held back.

    Yields:
        Says whether SIGTERM came.

    Raises:
        TerminationSignal: SIGTERM came, and the block ended because of it, or without noticing.
    """
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield lambda: False
        return
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            raise TerminationSignal(signal=number)
        came.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    except InterruptedTraining as error:
        raise TerminationSignal(signal=signal.SIGTERM) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if came.is_set():
        raise TerminationSignal(signal=signal.SIGTERM)
