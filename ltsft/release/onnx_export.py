"""A composed model as ONNX, through PyTorch's exporter, and checked against PyTorch before anybody sees it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltsft.atomic import fresh_folder
from ltsft.errors import CompositionError, ConfigError

__all__ = ["ONNX_FILE", "export_onnx"]

ONNX_FILE = "model.onnx"
_TOLERANCE = 1e-3
"""Largest difference of a logit: both compute in float32 and round in another order."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CHECKED_SHAPES = ((1, 8), (2, 16), (3, 5))


class _Outputs(nn.Module):
    """A model with its inputs in one order and its outputs as a tuple."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(given[name] for name in self.outputs)


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> float:
    """Write a model as ONNX with its tokenizer and configuration.

    Inputs are ``input_ids``, ``attention_mask`` and, where the tokenizer tells two texts apart by them,
    ``token_type_ids``, all int64 (batch, length), both sides free. The output is ``logits``; for a model that points at
    answers ``start_logits`` and ``end_logits``. The folder appears by one rename, after onnxruntime has given the same
    outputs for batches of several shapes.

    Args:
        model: composed, on the CPU, float32; put into evaluation mode.
        tokenizer: the base's tokenizer.
        folder: to write: new or empty.

    Returns:
        The largest difference of an output that was found.

    Raises:
        ConfigError: the packages of the extra ``onnx`` are not installed.
        CompositionError: the folder is in use, the head is not one of transformers' own, or the exported model gives
            other outputs.
    """
    own_head = getattr(model.config, "ltsft_head", None)
    if own_head:
        raise CompositionError(
            f"a {own_head} cannot be exported to ONNX: its trees are found outside of the network; export to hf"
        )
    _need("onnx", "onnxscript", "onnxruntime")
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CompositionError(f"{folder} exists; export to a new or an empty folder")
    model.train(False)
    inputs = [name for name in _INPUTS if name in ("input_ids", "attention_mask", *tokenizer.model_input_names)]
    whole = _Outputs(model, inputs, _outputs_of(model)).eval()
    with fresh_folder(folder) as fresh:
        _write(whole, fresh / ONNX_FILE)
        difference = _largest_difference(whole, fresh / ONNX_FILE)
        if not difference <= _TOLERANCE:
            raise CompositionError(
                f"the ONNX model gives other outputs than PyTorch: they differ by {difference:.3g}, at most "
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


def _outputs_of(model: PreTrainedModel) -> list[str]:
    """Name the outputs of a model, in their order."""
    with torch.no_grad():
        given = model(input_ids=torch.zeros((1, 4), dtype=torch.int64))
    return [name for name in given if name in ("logits", "start_logits", "end_logits")]


def _batch(whole: _Outputs, shape: tuple[int, int], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, int(whole.model.config.vocab_size), shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.int64)
    if shape[0] > 1:
        mask[0, shape[1] // 2 :] = 0  # a row with padding
    types = torch.zeros(shape, dtype=torch.int64)
    types[:, shape[1] // 2 :] = 1
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return tuple(tensors[name] for name in whole.inputs)


def _write(whole: _Outputs, file: Path) -> None:
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        whole,
        _batch(whole, (2, 8), seed=0),
        str(file),
        input_names=list(whole.inputs),
        output_names=list(whole.outputs),
        dynamic_shapes=(tuple(free for _ in whole.inputs),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _largest_difference(whole: _Outputs, file: Path) -> float:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    largest = 0.0
    for seed, shape in enumerate(_CHECKED_SHAPES, 1):
        tensors = _batch(whole, shape, seed)
        with torch.no_grad():
            wanted = whole(*tensors)
        inputs = {name: tensor.numpy() for name, tensor in zip(whole.inputs, tensors, strict=True)}
        rows = inputs["attention_mask"].astype(bool)
        for given, expected in zip(session.run(list(whole.outputs), inputs), wanted, strict=True):
            difference = np.abs(given - expected.numpy())
            largest = max(largest, float((difference if given.shape[:2] != rows.shape else difference[rows]).max()))
    return largest
