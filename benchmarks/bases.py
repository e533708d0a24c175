"""Models of the size of mBERT with random weights, and SFTs of them: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ltsft.base import parameter_roles
from ltsft.sft import SFT, BaseRef, Diff, Kind

__all__ = [
    "BASE_REF",
    "LABELS",
    "MBERT",
    "QUICK",
    "Size",
    "build_config",
    "build_masked_lm",
    "build_sft",
    "build_token_classifier",
    "save_base",
    "size_of",
]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BASE_REF = BaseRef(id="random", revision=None, fingerprint="0" * 64, tokenizer_fingerprint="1" * 64)
LABELS = tuple(f"L{i}" for i in range(17))
"""As many as there are universal parts of speech."""


@dataclass(frozen=True)
class Size:
    """How large a model and its SFTs are.

    Attributes:
        name: for the table.
        vocabulary: sub-words.
        hidden: width.
        layers: of the encoder.
        heads: of attention.
        intermediate: width of the feed-forward layers.
        language_support: K of a language SFT.
        task_support: K of a task SFT.
    """

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    language_support: int
    task_support: int


MBERT = Size("mBERT (177.9 M parameters)", 119_547, 768, 12, 12, 3072, 7_667_712, 14_155_776)
QUICK = Size("a small encoder (--quick)", 4_000, 128, 2, 2, 512, 39_000, 72_000)


def size_of(quick: bool) -> Size:
    """Give the size of mBERT, or the small one."""
    return QUICK if quick else MBERT


def build_config(size: Size, **more: Any) -> BertConfig:
    """Give the configuration; `more` goes to it as it is, such as `id2label`."""
    return BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        **more,
    )


def build_masked_lm(size: Size) -> PreTrainedModel:
    """Build a masked LM, output embeddings untied from the input's as in training; the same weights each time."""
    torch.manual_seed(0)
    model = BertForMaskedLM(build_config(size, tie_word_embeddings=False))
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    output.weight.data.copy_(embeddings.weight.data)
    return model.eval()


def build_token_classifier(size: Size, labels: Sequence[str] = LABELS) -> PreTrainedModel:
    """Build a token classifier; the same weights each time."""
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    return BertForTokenClassification(
        build_config(size, id2label=names, label2id={label: i for i, label in names.items()})
    ).eval()


def save_base(size: Size, folder: Path) -> Path:
    """Write a base with its masked-LM head and a WordPiece tokenizer of made-up words."""
    words = [*SPECIAL, *(f"w{number}" for number in range(size.vocabulary - len(SPECIAL)))]
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True))).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    BertForMaskedLM(build_config(size)).save_pretrained(folder)
    return folder


def build_sft(model: PreTrainedModel, kind: Kind, subject: str, support: int, *, seed: int) -> SFT:
    """Build an SFT that looks trained: exactly `support` entries, unevenly spread, values with random mantissas.

    Within a parameter the support is uniformly random, the case in which its indices take the most room.
    """
    generator = torch.Generator().manual_seed(seed)
    maskable = parameter_roles(model).maskable
    sizes = [p.numel() for p in maskable.values()]
    shares = torch.tensor(sizes) * (1 + torch.rand(len(sizes), generator=generator))
    counts = (shares * (support / float(shares.sum()))).long().tolist()
    counts[0] += support - sum(counts)
    diffs = {}
    for (name, p), count in zip(maskable.items(), counts, strict=True):
        drawn = torch.rand(p.numel(), generator=generator)
        indices = torch.topk(drawn, count, sorted=False).indices.sort().values.int()
        spread = 2e-3 * torch.exp(0.5 * torch.randn(count, generator=generator))
        values = torch.randn(count, generator=generator) * spread
        diffs[name] = Diff(indices=indices, values=values, shape=tuple(p.shape))
    return SFT(kind=kind, subject=subject, base=BASE_REF, diffs=diffs, head={}, labels=(), maskable=sum(sizes))
