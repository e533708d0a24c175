"""Memory that threads have freed goes back to the system."""

from __future__ import annotations

import ctypes
import threading
import weakref
from pathlib import Path

import pytest
import torch

from ltsft.heap import return_memory

MB = 2**20


def resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_threads_have_freed_goes_back() -> None:
    def fill() -> None:
        kept = []
        for _ in range(200):
            freed = torch.ones(MB // 8)  # half a megabyte, too small for a mapping of its own
            kept.append(torch.ones(16))  # stays behind it, so that the heap cannot shrink from its end
            held.append(kept)
            filled.append(freed)

    held: list[list[torch.Tensor]] = []
    filled: list[torch.Tensor] = []
    for _ in range(4):
        thread = threading.Thread(target=fill)
        thread.start()
        thread.join()
    full = resident()
    filled.clear()
    return_memory()
    assert full - resident() > 300 * MB  # of 400


def test_what_holds_itself_goes_too_when_it_came_after_what_was_put_aside() -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

    return_memory()
    watched = weakref.ref(Node())
    assert watched() is not None
    return_memory()
    assert watched() is None
