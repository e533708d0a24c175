"""JSON in one way only, and its hash: what keys are made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["canonical_json", "hash_json"]


def canonical_json(value: Any) -> str:
    """Write a value as JSON in one way only: sorted keys, no spaces, ASCII, paths and other objects as text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def hash_json(value: Any) -> str:
    """Give the SHA-256 of a value's canonical JSON, 64 hex digits.

    Example:
        >>> hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
