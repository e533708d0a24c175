"""Masked language modelling on raw text (Devlin et al. 2019): what a language SFT learns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.base import Base
from ltsft.errors import TrainingError
from ltsft.objectives.documents import (
    IGNORE,
    attention_within,
    first_position,
    number_documents,
    position_in_document,
    split_documents,
)
from ltsft.objectives.objective import Evaluation, Objective

LINES_AT_ONCE = 1000
SEQUENCES_AT_ONCE = 32
ROWS_AT_ONCE = 16
SHORTEST_PIECE = 3  # a cls, a sub-word and a sep


class MaskedLM(Objective):
    """Predict masked sub-words of packed text.

    Args:
        tokenizer: the base's tokenizer.
        mask_probability: share of sub-words to predict; of these 80 % are masked, 10 % replaced, 10 % kept.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, mask_probability: float = 0.15) -> None:
        self._start, self._pad = tokenizer.cls_token_id, tokenizer.pad_token_id
        self._first_position: int | None = None
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=mask_probability, seed=0)

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with its masked-LM head; nothing in it is new, so the seed is not used."""
        model = base.masked_lm()
        self.fit(model)
        return model

    def fit(self, model: PreTrainedModel) -> None:
        """Keep packed documents apart by attention if the model can do it exactly; by rows of their own if not."""
        self._first_position = first_position(model)

    def lengths(self, examples: Sequence[Any]) -> list[int] | None:
        """Packed sequences are equally long."""
        return None

    def collate(self, examples: Sequence[Any], generator: Generator) -> dict[str, Tensor]:
        """Mask packed sequences.

        Returns:
            `input_ids`, (batch, length); `masked`, the flat positions to predict, (masked,); `labels`, what stands
            there, (masked,). They are found here, on the CPU, so that no accelerator has to be waited for. Where a
            sequence holds several documents also `documents` and `position_ids`, (batch, length), or, for a model
            that cannot keep them apart, a row for each document and an `attention_mask`, (documents, longest).
        """
        self._collator.generator = generator
        rows = [torch.as_tensor(np.asarray(e, dtype=np.int64)) for e in examples]
        masked = self._collator(rows)
        batch = {"input_ids": masked["input_ids"], "labels": masked["labels"]}
        numbers = number_documents(torch.stack(rows), start=self._start, pad=self._pad)
        if bool((numbers != 1).any()):
            if self._first_position is None:
                batch = split_documents(batch["input_ids"], batch["labels"], numbers, pad=self._pad or 0)
            else:
                batch["documents"] = numbers
                batch["position_ids"] = position_in_document(numbers) + self._first_position
        labels = batch["labels"].reshape(-1)
        batch["masked"] = (labels != IGNORE).nonzero().squeeze(1)
        return {**batch, "labels": labels[batch["masked"]]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the mean cross-entropy of the masked sub-words, in nats."""
        more = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
        if "documents" in batch:
            more["attention_mask"] = attention_within(batch["documents"])
        logits = masked_logits(model, batch["input_ids"], batch["masked"], **more)  # (masked, vocabulary)
        total: Tensor = _CrossEntropy.apply(logits, batch["labels"])
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


class _CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of rows of logits, (n, classes), which are overwritten: with 120,000 classes each copy
    that torch's own would make counts. Its values and gradients are torch's, bit for bit.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.dtype = logits.dtype
        logits = logits.float()
        log_probabilities = torch.log_softmax(logits, -1, out=logits)
        ctx.save_for_backward(log_probabilities, labels)
        return functional.nll_loss(log_probabilities, labels, reduction="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_probabilities, labels = ctx.saved_tensors
        for start in range(0, len(labels), ROWS_AT_ONCE):
            rows = log_probabilities[start : start + ROWS_AT_ONCE]
            places = labels[start : start + ROWS_AT_ONCE, None]
            of_rows = torch.zeros_like(rows).scatter_(1, places, -gradients[0].expand(len(rows), 1))
            torch.ops.aten._log_softmax_backward_data.out(of_rows, rows, -1, rows.dtype, out=rows)
        return log_probabilities.to(ctx.dtype), None


def masked_logits(model: nn.Module, input_ids: Tensor, masked: Tensor, **more: Tensor) -> Tensor:
    """Compute logits at the masked positions alone.

    The head is given the hidden states gathered at `masked`, so the projection to the vocabulary costs what is masked
    and no more. It works for every architecture whose masked-LM head looks at one position at a time.

    Args:
        model: a masked language model of transformers.
        input_ids: (batch, length).
        masked: flat positions, in [0, batch x length), where logits are needed, int64, (masked,).
        more: what else goes to the model, such as `attention_mask`; without it there is no padding.

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
        logits: Tensor = model(input_ids=input_ids, **more).logits
    finally:
        handle.remove()
    return logits[0]


def pack_text(
    lines: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, file: Path
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Pack text into sequences of equal length, on disk.

    An empty line ends a document. The lines of a document follow each other, a separator after each, and are cut where
    a sequence is full; each piece stands between the tokenizer's cls and sep. The next document goes on in the same
    sequence, with a cls of its own, and is kept apart from it in training; where fewer than three places are left they
    are padding. The last, shorter sequence is dropped. Memory does not grow with the text: it goes through in blocks
    and is mapped, not read, afterwards.

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
    partial = file.with_name(file.name + ".partial")
    iterator = iter(lines)
    with partial.open("wb") as out:
        packer = _Packer(tokenizer, max_length, out)
        while block := list(islice(iterator, LINES_AT_ONCE)):
            packer.add(block)
    if packer.written < 2:
        raise TrainingError(
            f"the text gives {packer.written} sequences of {max_length} sub-words and at least 2 are needed; "
            "add text or lower max_length"
        )
    partial.replace(file)
    return np.memmap(file, dtype=np.int32, mode="r", shape=(packer.written, max_length))


class _Packer:
    """Writes sequences as text comes in; holds what does not fill one yet."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, out: BinaryIO) -> None:
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        if start is None or end is None:
            raise TrainingError("the tokenizer has no cls and sep tokens; packing needs both")
        pad = tokenizer.pad_token_id
        self._tokenizer = tokenizer
        self._start, self._end, self._pad = start, end, end if pad is None else pad
        self._out = out
        self._row = np.empty(max_length, dtype=np.int32)
        self._filled = 0  # places of the row that earlier documents take
        self._left = np.empty(0, dtype=np.int32)  # of the document that is open
        self.written = 0

    def add(self, lines: list[str]) -> None:
        """Take some lines; an empty one ends a document."""
        encoded = self._tokenizer(
            lines, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
        began = 0
        for i, line in enumerate(lines):
            if not line:
                self._extend(encoded[began:i])
                self._close()
                began = i + 1
        self._extend(encoded[began:])

    def _extend(self, encoded: list[list[int]]) -> None:
        for ids in encoded:
            ids.append(self._end)
        added = np.fromiter(chain.from_iterable(encoded), dtype=np.int32)
        left = np.concatenate([self._left, added])
        if self._filled:
            room = len(self._row) - self._filled - 2
            if len(left) < room:
                self._left = left
                return
            self._row[self._filled] = self._start
            self._row[self._filled + 1 : -1] = left[:room]
            self._row[-1] = self._end
            self._write(self._row)
            self._filled, left = 0, left[room:]
        body = len(self._row) - 2
        whole = len(left) // body
        rows = np.empty((whole, len(self._row)), dtype=np.int32)
        rows[:, 0], rows[:, -1] = self._start, self._end
        rows[:, 1:-1] = left[: whole * body].reshape(whole, body)
        self._write(rows)
        self._left = left[whole * body :].copy()

    def _close(self) -> None:
        """End the open document; its last piece, which ends with a separator, begins or goes on a sequence."""
        if not len(self._left):
            return
        stop = self._filled + 1 + len(self._left)
        self._row[self._filled] = self._start
        self._row[self._filled + 1 : stop] = self._left
        self._filled, self._left = stop, self._left[:0]
        if len(self._row) - stop < SHORTEST_PIECE:
            self._row[stop:] = self._pad
            self._write(self._row)
            self._filled = 0

    def _write(self, rows: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        self._out.write(rows.tobytes())
        self.written += rows.size // len(self._row)


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
