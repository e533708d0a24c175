"""Lines that are almost another line: one template filled in many times, or pages that were fetched twice."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["find_near_duplicates"]

ALIKE = 0.8
"""Share of common pieces from which two lines are nearly the same (Jaccard similarity, as MinHash estimates it)."""

PIECE = 5
LEAST_CHARACTERS = 30
"""Shorter lines are like each other by chance."""

PERMUTATIONS = 64


def find_near_duplicates(lines: Sequence[str]) -> list[bool]:
    """Say of each line whether it is nearly one before it; lines that are just equal are not.

    Args:
        lines: a sample of a text; each is cut into pieces of five characters that overlap.
    """
    from datasketch import MinHash, MinHashLSH  # loads for a second

    index, empty = MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS), MinHash(num_perm=PERMUTATIONS)
    seen: set[str] = set()
    found = []
    for number, line in enumerate(lines):
        if len(line) < LEAST_CHARACTERS or line in seen:
            found.append(False)
            continue
        seen.add(line)
        pieces = {line[i : i + PIECE].encode("utf-8", "backslashreplace") for i in range(len(line) - PIECE + 1)}
        sketch = empty.copy()  # drawing the permutations costs as much as all else
        sketch.update_batch(pieces)
        found.append(bool(index.query(sketch)))
        index.insert(number, sketch)
    return found
