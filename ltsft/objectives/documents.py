"""Several documents in one sequence: kept apart exactly, whatever the architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

IGNORE = -100
NONE = -1  # no sub-word
PROBE_LENGTH = 192  # longer than the windows of local attention that are usual


def number_documents(input_ids: Tensor, *, start: int | None, pad: int | None) -> Tensor:
    """Number the documents of each sequence from 1; padding is 0.

    Args:
        input_ids: (batch, length), int64; every document but the first begins with `start`.
        start: the sub-word that begins a document; None if the tokenizer has none.
        pad: the sub-word that fills up; None if the tokenizer has none.

    Returns:
        int64, (batch, length).
    """
    begins = input_ids == (NONE if start is None else start)
    begins[:, 0] = True
    numbers = begins.long().cumsum(1)
    return torch.where(input_ids == (NONE if pad is None else pad), 0, numbers)


def position_in_document(numbers: Tensor) -> Tensor:
    """Give the place of each sub-word in its document, from 0; int64, (batch, length)."""
    places = torch.arange(numbers.shape[1]).expand_as(numbers)
    is_first = torch.ones_like(numbers, dtype=torch.bool)
    is_first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return places - torch.where(is_first, places, 0).cummax(1).values


def attention_within(numbers: Tensor) -> Tensor:
    """Give the additive mask that lets each sub-word see its own document: 0 or the lowest float32.

    Args:
        numbers: of the documents, (batch, length).

    Returns:
        float32, (batch, 1, length, length).
    """
    is_same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return torch.where(is_same, 0.0, torch.finfo(torch.float32).min)


def split_documents(input_ids: Tensor, labels: Tensor, numbers: Tensor, *, pad: int) -> dict[str, Tensor]:
    """Give each document a row of its own: exact for every architecture, at the price of padding.

    Returns:
        `input_ids`, `labels` (-100 in padding) and `attention_mask` (0 or 1), int64, (documents, longest).
    """
    lengths, rows = [], []
    for row, of_row in enumerate(numbers):
        for number in range(1, int(of_row.max()) + 1):
            where = (of_row == number).nonzero().squeeze(1)
            rows.append((row, where))
            lengths.append(len(where))
    shape = (len(rows), max(lengths))
    ids, wanted = torch.full(shape, pad), torch.full(shape, IGNORE)
    for place, (row, where) in enumerate(rows):
        ids[place, : len(where)] = input_ids[row, where]
        wanted[place, : len(where)] = labels[row, where]
    mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    return {"input_ids": ids, "labels": wanted, "attention_mask": mask.long()}


@torch.no_grad()
def first_position(model: PreTrainedModel) -> int | None:
    """Find out whether a model keeps packed documents apart, and from which number it counts positions.

    It is tried, not looked up: two documents go through the encoder in one sequence, with `attention_within` and
    positions that begin anew, and one by one.

    Returns:
        The number of the first position (0 in BERT, one more than the padding's in RoBERTa); None if the documents came
        out different from how they come out alone, or the architecture takes no such mask or positions.
    """
    encoder: Any = model.base_model
    config = model.config
    longest = getattr(config, "max_position_embeddings", None) or PROBE_LENGTH + 4
    length = min(PROBE_LENGTH, longest - 4)
    pad = config.pad_token_id or 0
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size - 1, (1, length), generator=generator)
    ids = (ids + (ids >= pad)).to(next(encoder.parameters()).device)  # no padding among them
    cut = 3 * length // 4
    numbers = (torch.arange(length) >= cut).long().unsqueeze(0) + 1
    places, mask = position_in_document(numbers).to(ids.device), attention_within(numbers).to(ids.device)
    was_training = encoder.training
    encoder.eval()
    try:
        alone = [encoder(input_ids=part).last_hidden_state for part in (ids[:, :cut], ids[:, cut:])]
        for first in dict.fromkeys((0, pad + 1)):
            try:
                packed = encoder(input_ids=ids, attention_mask=mask, position_ids=places + first).last_hidden_state
            except (TypeError, ValueError, RuntimeError, IndexError):
                continue  # it takes no such arguments
            if torch.allclose(packed, torch.cat(alone, 1), rtol=1e-3, atol=1e-4):
                return first
        return None
    finally:
        encoder.train(was_training)
