"""Processes that train one SFT together, as torchrun starts them: who writes files, and who waits for whom."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from torch import distributed


def join_processes(device: str) -> str:
    """Join the processes that torchrun started with this one, if it did; give the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    state = PartialState(cpu=device == "cpu")
    return device if device == "cpu" else str(state.device)


def is_first_process() -> bool:
    """Whether this process is the one, of those that train together, that writes files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def wait_for_all() -> None:
    """Wait until all processes that train together are here."""
    if distributed.is_initialized():
        distributed.barrier()


def of_first_process(decision: bool, device: torch.device) -> bool:
    """Give what the first process decided: clocks differ, and a checkpoint is written by all processes or none."""
    if not distributed.is_initialized():
        return decision
    told = torch.tensor(decision, device=device)
    distributed.broadcast(told, 0)
    return bool(told)
