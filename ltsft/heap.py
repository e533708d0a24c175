"""Freed memory, handed back to the system.

glibc keeps a heap for each of many threads and gives little of what is freed in one back by itself. A flow runs every
task in a thread of its own, so a process that trains one SFT after the other would come to hold several times the
memory that one training needs.

What the libraries hold once they are imported, some 800,000 objects, takes half a second to look through, so the first
call puts aside all that there is: no later collection looks at it.
"""

from __future__ import annotations

import ctypes
import gc


def return_memory() -> None:
    """Collect garbage, and where the C library is glibc hand freed memory back to the system."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
