"""Freed memory, handed back to the system.

glibc keeps a heap for each of many threads and gives little of what is freed in one back by itself. A flow runs every
task in a thread of its own, so a process that trains one SFT after the other would come to hold several times the
memory that one training needs.

What the libraries hold once they are imported, some 800,000 objects, takes half a second to look through, and a trainer
looks before each phase. So what is there when the work begins is put aside: no later collection looks at it.
"""

from __future__ import annotations

import ctypes
import gc


def collect_seldom() -> None:
    """Look for garbage after 20,000 new objects in place of 700: a tenth of the time of large imports is looking."""
    gc.set_threshold(20_000, 20, 20)


def put_aside() -> None:
    """Leave what is there by now, modules above all, out of later collections; only the first call does something."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def return_memory() -> None:
    """Collect garbage, and where the C library is glibc hand freed memory back to the system."""
    put_aside()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
