"""What a training computes in is settled when it begins, kept with its checkpoints, and what it goes on with."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from pydantic import ValidationError

from ltsft.config import Precision
from ltsft.errors import TrainingError
from ltsft.precision import STRETCHES, WORDS, Numerics, describe_device, is_native
from ltsft.training.checkpoints import NUMERICS, checkpoint_files
from ltsft.training.phase import write_text
from ltsft.training.processes import any_process, is_first_of_node, is_first_process, number_of_first_process

__all__ = ["settle_numerics"]

_LOG = logging.getLogger(__name__)


def settle_numerics(folder: Path, asked: Precision, device: str) -> tuple[Numerics, ...]:
    """Settle what a training computes in, the same for all its processes, and write that beside its checkpoints.

    A training that begins has the precision that its recipe asks for, and as many threads as torch has here. One that
    goes on has those that it was begun with. Where any of its devices would emulate the precision, it goes on in
    float32, and stays in float32 from then on wherever it goes.

    Args:
        folder: of the training.
        asked: the precision of its recipe.
        device: of this process.

    Returns:
        One for each stretch of the training, in their order; the last is what to compute in now.

    Raises:
        TrainingError: what was written earlier cannot be read.
    """
    files = checkpoint_files(folder)
    earlier = _read(folder / NUMERICS) if files else ()
    wanted = earlier[-1].precision if earlier else asked
    is_emulated = any_process(not is_native(wanted, device), torch.device(device))
    precision: Precision = "fp32" if is_emulated else wanted
    here = torch.get_num_threads()
    threads = number_of_first_process(earlier[-1].threads if earlier else here, torch.device(device))
    now = Numerics.of_device(device, precision=precision, threads=threads)
    stretches = earlier if earlier and earlier[-1] == now else (*earlier, now)
    if is_first_process():
        if is_emulated:
            begun = "goes on" if files else "trained"
            _LOG.warning(
                "%s in float32: %s has no %s, which the recipe asks for, and would emulate it many times slower",
                begun, describe_device(device), WORDS[wanted],
            )  # fmt: skip
        elif precision != asked:
            _LOG.warning("goes on in %s, as it was begun; the recipe asks for %s", WORDS[precision], WORDS[asked])
        if threads != here:
            _LOG.warning("goes on with %d threads, as it was begun; this machine is set to %d", threads, here)
    if is_first_of_node():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps([stretch.model_dump() for stretch in stretches]), folder / NUMERICS)
    return stretches


def _read(file: Path) -> tuple[Numerics, ...]:
    """Read what was settled earlier; nothing where the training is older than this file."""
    if not file.is_file():
        return ()
    try:
        return STRETCHES.validate_json(file.read_bytes())
    except ValidationError as error:
        raise TrainingError(f"{file} is damaged: {error}; remove the folder to train anew") from error
