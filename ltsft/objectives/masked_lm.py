"""Masked language modelling on raw text (Devlin et al. 2019): what a language SFT learns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.base import Base
from ltsft.errors import TrainingError
from ltsft.objectives import Evaluation

LINES_AT_ONCE = 1000
SEQUENCES_AT_ONCE = 32


class MaskedLM:
    """Predict masked sub-words of packed text.

    Args:
        tokenizer: the base's tokenizer.
        mask_probability: share of sub-words to predict; of these 80 % are masked, 10 % replaced, 10 % kept.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, mask_probability: float = 0.15) -> None:
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=mask_probability, seed=0)

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with its masked-LM head; nothing in it is new, so the seed is not used."""
        return base.masked_lm()

    def lengths(self, examples: Sequence[Any]) -> list[int] | None:
        """Packed sequences are equally long."""
        return None

    def collate(self, examples: Sequence[Any], generator: Generator) -> dict[str, Tensor]:
        """Mask packed sequences.

        Returns:
            `input_ids`, (batch, length); `masked`, the flat positions to predict, (masked,); `labels`, what stands
            there, (masked,). They are found here, on the CPU, so that no accelerator has to be waited for.
        """
        self._collator.generator = generator
        batch = self._collator([torch.as_tensor(np.asarray(e, dtype=np.int64)) for e in examples])
        labels = batch["labels"].reshape(-1)
        masked = (labels != -100).nonzero().squeeze(1)
        return {"input_ids": batch["input_ids"], "masked": masked, "labels": labels[masked]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the mean cross-entropy of the masked sub-words, in nats."""
        logits = masked_logits(model, batch["input_ids"], batch["masked"])  # (masked, vocabulary)
        total = functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")
        return total / max(len(batch["labels"]), 1)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[Any]) -> Evaluation:
        """Give the loss over all examples with masks that are the same at every call; the score is minus the loss."""
        device = next(model.parameters()).device
        total, counted = 0.0, 0
        for start in range(0, len(examples), SEQUENCES_AT_ONCE):
            chunk = [examples[i] for i in range(start, min(start + SEQUENCES_AT_ONCE, len(examples)))]
            batch = self.collate(chunk, torch.Generator().manual_seed(start))
            masked = len(batch["labels"])
            total += float(self.loss(model, {k: v.to(device) for k, v in batch.items()})) * masked
            counted += masked
        loss = total / max(counted, 1)
        return Evaluation(score=-loss, metrics={"loss": loss})


def masked_logits(model: nn.Module, input_ids: Tensor, masked: Tensor) -> Tensor:
    """Compute logits at the masked positions alone.

    The head is given the hidden states gathered at `masked`, so the projection to the vocabulary costs what is masked
    and no more. It works for every architecture whose masked-LM head looks at one position at a time.

    Args:
        model: a masked language model of transformers.
        input_ids: (batch, length), without padding.
        masked: flat positions, in [0, batch x length), where logits are needed, int64, (masked,).

    Returns:
        Logits, (masked, vocabulary).
    """

    def gather(module: nn.Module, arguments: Any, output: Any) -> Any:
        states = output["last_hidden_state"].flatten(0, 1)  # (batch x length, hidden)
        output["last_hidden_state"] = states.index_select(0, masked).unsqueeze(0)  # (1, masked, hidden)
        return output

    encoder: Any = model.base_model
    handle = encoder.register_forward_hook(gather)
    try:
        logits: Tensor = model(input_ids=input_ids).logits
    finally:
        handle.remove()
    return logits[0]


def pack_text(
    lines: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, file: Path
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Pack text into sequences of equal length, on disk.

    Lines follow each other, a separator between them, and are cut every `max_length - 2` sub-words; the last, shorter
    piece is dropped. Memory does not grow with the text: it goes through in blocks and is mapped, not read, afterwards.

    Args:
        lines: the text, a line each.
        tokenizer: a fast tokenizer.
        max_length: sub-words in a sequence, special tokens included.
        file: where the sequences are written.

    Returns:
        A memory map, (sequences, max_length), int32. If the file is there already, it is mapped as it is.

    Raises:
        TrainingError: there is not enough text for two sequences.
    """
    if file.is_file():
        return np.memmap(file, dtype=np.int32, mode="r").reshape(-1, max_length)
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if start is None or end is None:
        raise TrainingError("the tokenizer has no cls and sep tokens; packing needs both")
    body = max_length - 2
    left: list[int] = []
    written = 0
    iterator = iter(lines)
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as out:
        while block := list(islice(iterator, LINES_AT_ONCE)):
            for ids in tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]:
                left += ids
                left.append(end)
            whole = len(left) // body
            packed = np.empty((whole, max_length), dtype=np.int32)
            packed[:, 0], packed[:, -1] = start, end
            packed[:, 1:-1] = np.asarray(left[: whole * body], dtype=np.int32).reshape(whole, body)
            out.write(packed.tobytes())
            left = left[whole * body :]
            written += whole
    if written < 2:
        raise TrainingError(
            f"the text gives {written} sequences of {max_length} sub-words and at least 2 are needed; "
            "add text or lower max_length"
        )
    partial.replace(file)
    return np.memmap(file, dtype=np.int32, mode="r", shape=(written, max_length))


class Rows(Sequence[Any]):
    """Some rows of an array, read when they are asked for."""

    def __init__(self, array: np.ndarray[Any, Any], indices: np.ndarray[Any, Any]) -> None:
        self._array = array
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: Any) -> Any:
        return self._array[self._indices[i]]


def split_held_out(packed: np.ndarray[Any, Any], held_out: int) -> tuple[Rows, Rows]:
    """Keep evenly spaced sequences from training, a tenth of all at most and one at least.

    Returns:
        Sequences to train on, and sequences held out.
    """
    count = max(1, min(held_out, len(packed) // 10))
    kept = ((np.arange(count) + 0.5) * len(packed) / count).astype(np.int64)
    return Rows(packed, np.delete(np.arange(len(packed)), kept)), Rows(packed, kept)
