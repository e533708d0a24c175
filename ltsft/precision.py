"""The precision in which a model computes, in training and in scoring alike."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ltsft.recipe import Precision

__all__ = ["autocast"]


def autocast(precision: Precision, device: str) -> AbstractContextManager[Any]:
    """Give the autocast context of a precision; fp32 has none."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
