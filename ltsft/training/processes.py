"""Processes that train one SFT together, as torchrun starts them: who writes files, and who waits for whom.

Each node has a disk of its own, and the first process of each node writes there. What only one process has (the
checkpoint that a training goes on from, the state of its random numbers) is sent to the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, distributed

_CHUNK_BYTES = 64 * 1024 * 1024


def join_processes(device: str) -> str:
    """Join the processes that torchrun started with this one, if it did; give the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    state = PartialState(cpu=device == "cpu")
    return device if device == "cpu" else str(state.device)


def is_first_process() -> bool:
    """Whether this process is the one, of those that train together, that reports and stores."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def is_first_of_node() -> bool:
    """Whether this process is the one, of those on this machine, that writes files."""
    return not distributed.is_initialized() or int(os.environ.get("LOCAL_RANK", "0")) == 0


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


def number_of_first_process(number: int, device: torch.device) -> int:
    """Give the number that the first process has."""
    if not distributed.is_initialized():
        return number
    told = torch.tensor(number, device=device)
    distributed.broadcast(told, 0)
    return int(told)


def any_process(decision: bool, device: torch.device) -> bool:
    """Give whether any process decided so: each node is asked to stop by itself."""
    if not distributed.is_initialized():
        return decision
    told = torch.tensor(int(decision), device=device)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return bool(told)


def send_file(file: Path, target: Path, *, sender: int, device: torch.device) -> None:
    """Put a file of one process on the disk of every node that does not have it.

    All processes call it together; a reader sees the whole file or none.

    Args:
        file: where the sender has it; the others do not look at it.
        target: where each node gets it.
        sender: rank of the process that has it.
        device: of this process.
    """
    is_sender = distributed.get_rank() == sender
    size = _send(torch.tensor(file.stat().st_size if is_sender else 0, device=device), sender)
    is_writer = is_first_of_node() and not target.is_file()
    partial = target.with_name(target.name + ".partial")
    if is_writer:
        target.parent.mkdir(parents=True, exist_ok=True)
    with (
        file.open("rb") if is_sender else nullcontext() as source,
        partial.open("wb") if is_writer else nullcontext() as copy,
    ):
        for start in range(0, int(size), _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, int(size) - start)
            data = bytearray(count) if source is None else bytearray(source.read(count))
            chunk = _send(torch.frombuffer(data, dtype=torch.uint8).to(device), sender)
            if copy is not None:
                copy.write(chunk.cpu().numpy().tobytes())
    if is_writer:
        partial.replace(target)


def send_files(files: Mapping[str, Path], folder: Path, *, device: torch.device) -> None:
    """Put files of the first process into a folder of every node; files that are there already stay as they are.

    Args:
        files: by their path in the folder, where the first process has them; the others give none.
        folder: of this node.
        device: of this process.
    """
    listing = folder / "sent.json"
    if is_first_process():
        listing.write_text(json.dumps(list(files)), encoding="utf-8")
    elif is_first_of_node():
        listing.unlink(missing_ok=True)
    send_file(listing, listing, sender=0, device=device)
    wait_for_all()
    for name in json.loads(listing.read_text(encoding="utf-8")):
        send_file(files.get(name, listing), folder / name, sender=0, device=device)
    wait_for_all()


def complete_on_each_node(folder: Path, name: str, device: torch.device) -> None:
    """Put into a folder what each process wrote there for itself, on all nodes: any of them may be lost.

    Args:
        folder: of a checkpoint.
        name: of the file of a process, with ``{rank}`` in it.
        device: of this process.
    """
    if not distributed.is_initialized() or os.environ.get("LOCAL_WORLD_SIZE") in (None, os.environ.get("WORLD_SIZE")):
        return
    for rank in range(distributed.get_world_size()):
        file = folder / name.format(rank=rank)
        send_file(file, file, sender=rank, device=device)


def _send(value: Tensor, sender: int) -> Tensor:
    distributed.broadcast(value, sender)
    return value
