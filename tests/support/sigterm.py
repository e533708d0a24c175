"""A process whose handler of SIGTERM raises in the main thread, as Prefect's engine has one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """What the handler raises."""


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise `Stopped`, and give the handler of before its place back."""

    def stop(number: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)
