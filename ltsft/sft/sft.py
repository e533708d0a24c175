"""The SFT: a sparse fine-tuning, the thing that is learnt, stored, composed and measured.

SFT stands for *sparse fine-tuning*: a sparse difference to the weights of a pretrained base. Lottery-Ticket SFT
(Ansell, Ponti, Korhonen, Vulić: "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022) learns one by
fine-tuning everything, keeping the K weights that moved furthest, rewinding to the base and training just those K. A
*language SFT* comes from masked language modelling on raw text; a *task SFT* from labelled data in a source language.
In this project the three letters never mean supervised fine-tuning.

An SFT has two parts. The **diffs** say, for each parameter of the encoder that may be sparse, where it differs from the
base and by how much; they add up when SFTs are composed. The **head** is stored whole: it replaces what the model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from math import isfinite, prod
from typing import Any, Literal

import torch
from torch import Tensor

from ltsft.config import LT_SFT

__all__ = ["SFT", "BaseRef", "Diff", "Kind"]

Kind = Literal["language", "task"]
"""A language SFT (masked language modelling on raw text) or a task SFT (a target task's labelled data)."""

MAX_PARAMETER_SIZE = 2**31 - 1
"""Weights in the largest parameter that int32 indices can address."""


@dataclass(frozen=True)
class BaseRef:
    """Say which base an SFT belongs to.

    The two fingerprints decide; the id and the revision are for people. A copy of a base under another name has the
    same fingerprints and is the same base.

    Attributes:
        id: Hub id or folder name of the base.
        revision: Hub revision; None for a folder.
        fingerprint: SHA-256, 64 hex digits, over the encoder's parameters (name, shape, float32 bytes).
        tokenizer_fingerprint: SHA-256, 64 hex digits, over the tokenizer's files.
        golden: A few texts and what the tokenizer made of them, which an upgrade of its library can change while the
            files stay; empty where that is not known. Two bases do not differ by it.
    """

    id: str
    revision: str | None
    fingerprint: str
    tokenizer_fingerprint: str
    golden: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), compare=False, repr=False)

    @property
    def identity(self) -> dict[str, str | None]:
        """Its names and fingerprints, by the names of the attributes."""
        return {
            "id": self.id,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Diff:
    """Hold the differences of one parameter to its base values.

    Attributes:
        indices: The support: strictly increasing flat (row-major) indices, shape (k,), int32, on the CPU.
        values: Value minus base value at those indices, shape (k,), float32, on the CPU. A value may be 0: the weight
            was in the support and ended where it began.
        shape: Shape of the whole parameter.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def support_size(self) -> int:
        """Number of weights in the support."""
        return self.indices.numel()

    @property
    def size(self) -> int:
        """Number of weights of the whole parameter."""
        return prod(self.shape)

    def __repr__(self) -> str:
        """Say how much of a parameter it changes."""
        return f"Diff({self.support_size:,} of {self.size:,} weights, shape {self.shape})"

    def problem(self) -> str | None:
        """Return what is wrong with the diff, as the end of a sentence, or None where it is sound.

        Looked at are dtypes, sizes, the range and the order of the indices, and that every value is finite.
        """
        if self.indices.dtype != torch.int32 or self.indices.dim() != 1:
            return f"indices must be one row of int32, got {_described(self.indices)}"
        if self.values.dtype != torch.float32 or self.values.dim() != 1:
            return f"values must be one row of float32, got {_described(self.values)}"
        if self.values.numel() != self.indices.numel():
            return f"{self.indices.numel()} indices but {self.values.numel()} values"
        if any(side < 0 for side in self.shape) or self.size > MAX_PARAMETER_SIZE:
            return f"shape {list(self.shape)} is not that of a parameter of at most {MAX_PARAMETER_SIZE} weights"
        return self._index_problem() or self._value_problem()

    def _index_problem(self) -> str | None:
        indices = self.indices.numpy()  # numpy: several times faster than torch for one pass over a short row
        if not indices.size:
            return None
        rises = indices[1:] > indices[:-1]
        if rises.all() and indices[0] >= 0 and indices[-1] < self.size:
            return None
        lowest, highest = int(indices.min()), int(indices.max())
        if lowest < 0 or highest >= self.size:
            wrong = lowest if lowest < 0 else highest
            return f"index {wrong} is out of range: allowed are 0 to {self.size - 1} (shape {list(self.shape)})"
        at = int(rises.argmin())
        before, after = indices[at], indices[at + 1]
        return f"indices must be strictly increasing, but {after} follows {before} at position {at + 1}"

    def _value_problem(self) -> str | None:
        values = self.values.numpy()
        if not values.size or (isfinite(values.min()) and isfinite(values.max())):
            return None  # both are NaN where any value is
        at = int(torch.nonzero(~torch.isfinite(self.values))[0])
        return f"value {float(self.values[at])} at index {int(self.indices[at])} is not finite"

    def dense(self) -> Tensor:
        """Return the diff as a whole tensor: shape `shape`, float32, zero outside the support."""
        whole = torch.zeros(self.size, dtype=torch.float32)
        whole[self.indices.long()] = self.values
        return whole.reshape(self.shape)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SFT:
    """Hold one sparse fine-tuning: diffs and head for one base.

    Attributes:
        kind: "language" or "task".
        subject: The language code of a language SFT ("fo"), the target task of a task SFT ("pos").
        base: The base whose weights the diffs are differences to.
        diffs: Diffs by parameter name, relative to the encoder (`model.base_model`), for example
            "embeddings.word_embeddings.weight". Every parameter that could have been in the support is listed; its
            support may be empty.
        head: Whole parameters by full name in the model, for example "classifier.weight".
        labels: Labels of the head, in the order of its outputs; empty without a labelled head.
        maskable: Number of weights that could have been in the support: what density is a share of.
        source_languages: Languages whose labelled data a task SFT learnt from; empty for a language SFT.
        method: How it was learnt, by its name in `ltsft.methods.registry`.
        adapter: Whole tensors by name, of a method whose product is no diff (`ltsft.methods` says how they are read).
        details: What else is known (recipe, seed, data fingerprints, parents, versions, history); plain JSON values.
        path: Folder that the SFT was loaded from, for messages; None for one made in memory.
    """

    kind: Kind
    subject: str
    base: BaseRef
    diffs: Mapping[str, Diff]
    head: Mapping[str, Tensor]
    labels: tuple[str, ...]
    maskable: int
    source_languages: tuple[str, ...] = ()
    method: str = LT_SFT
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None

    @property
    def support_size(self) -> int:
        """Number of weights in the support, K, over all parameters."""
        return sum(diff.support_size for diff in self.diffs.values())

    @property
    def parameters(self) -> int:
        """Number of values that were learnt, without the head: what methods are compared at."""
        return self.support_size + sum(value.numel() for value in self.adapter.values())

    @property
    def density(self) -> float:
        """K over the number of maskable weights, in [0, 1]."""
        return self.support_size / self.maskable if self.maskable else 0.0

    @property
    def title(self) -> str:
        """What to call the SFT in messages, such as "language SFT fo (runs/fo)"."""
        where = f" ({self.path})" if self.path else ""
        return f"{self.kind} SFT {self.subject}{where}"

    def __repr__(self) -> str:
        """Say what it is and how large, in a line."""
        facts = ", ".join(f"{name}: {value}" for name, value in self._facts().items())
        return f"<{self.title}: {facts}>"

    def _repr_html_(self) -> str:
        """Say the same as a small table, for notebooks."""
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self._facts().items()
        )
        return f"<table><caption>{escape(self.title)}</caption>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        learnt = (
            {"parameters": f"{self.parameters:,}"}
            if self.adapter
            else {"support": f"{self.support_size:,} of {self.maskable:,} weights ({100 * self.density:.3g} %)"}
        )
        return {
            "base": self.base.id,
            "method": self.method,
            **learnt,
            **({"labels": ", ".join(self.labels)} if self.labels else {}),
            **({"learnt from": ", ".join(self.source_languages)} if self.source_languages else {}),
        }


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
