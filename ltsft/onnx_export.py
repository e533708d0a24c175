"""A composed model as ONNX, through PyTorch's exporter, and checked against PyTorch before anybody sees it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltsft.errors import CompositionError, ConfigError
from ltsft.files import fresh_folder

__all__ = ["ONNX_FILE", "export_onnx"]

ONNX_FILE = "model.onnx"
_TOLERANCE = 1e-3
"""Largest difference of a logit: both compute in float32 and round in another order."""
_CHECKED_SHAPES = ((1, 8), (2, 16), (3, 5))


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> float:
    """Write a model as ONNX with its tokenizer and configuration.

    Inputs are ``input_ids`` and ``attention_mask``, int64 (batch, length), both sides free; the output is ``logits``.
    The folder appears by one rename, after onnxruntime has given the same logits for batches of several shapes.

    Args:
        model: composed, on the CPU, float32; put into evaluation mode.
        tokenizer: the base's tokenizer.
        folder: to write: new or empty.

    Returns:
        The largest difference of a logit that was found.

    Raises:
        ConfigError: the packages of the extra ``onnx`` are not installed.
        CompositionError: the folder is in use, or the exported model gives other logits.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CompositionError(f"{folder} exists; export to a new or an empty folder")
    model.train(False)
    with fresh_folder(folder) as fresh:
        _write(model, fresh / ONNX_FILE)
        difference = _largest_difference(model, fresh / ONNX_FILE)
        if not difference <= _TOLERANCE:
            raise CompositionError(
                f"the ONNX model gives other logits than PyTorch: they differ by {difference:.3g}, at most "
                f"{_TOLERANCE:g} is allowed; nothing was exported"
            )
        tokenizer.save_pretrained(fresh)
        config = json.dumps(model.config.to_dict(), indent=2, sort_keys=True, default=str)
        (fresh / "config.json").write_text(config + "\n", encoding="utf-8")
        fresh.replace(folder)
    return difference


def _need(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{package} is needed for ONNX and is not installed; pip install 'ltsft[onnx]'"
            ) from error


def _batch(model: PreTrainedModel, shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, int(model.config.vocab_size), shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.int64)
    if shape[0] > 1:
        mask[0, shape[1] // 2 :] = 0  # a row with padding
    return ids, mask


def _write(model: PreTrainedModel, file: Path) -> None:
    ids, mask = _batch(model, (2, 8), seed=0)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        _Logits(model).eval(),
        (ids, mask),
        str(file),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": free, "attention_mask": free},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _largest_difference(model: PreTrainedModel, file: Path) -> float:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    largest = 0.0
    for seed, shape in enumerate(_CHECKED_SHAPES, 1):
        ids, mask = _batch(model, shape, seed)
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).logits.numpy()
        given = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        rows = mask.numpy().astype(bool)
        largest = max(largest, float(np.abs(given - wanted)[rows].max()))
    return largest
