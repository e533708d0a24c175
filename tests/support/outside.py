"""An objective and a method as somebody outside of this package would write them: this one file, and a line each.

The objective asks of a text whether it is long, with an answer of its own kind. The method trains every n-th weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from ltsft.base import Base
from ltsft.config import Recipe, Source, TargetTask
from ltsft.data import OnError, Sentence, read_records
from ltsft.methods import OwnSettings, SupportMethod
from ltsft.objectives import Belief, Evaluation, TargetObjective, attention, padded
from ltsft.serving import Input, Output, Prepared, Result

LABELS = ("short", "long")


@dataclass(frozen=True)
class LengthRow:
    text: str
    is_long: bool
    line: int


@dataclass(frozen=True)
class LengthExample:
    sentence: int
    input_ids: tuple[int, ...]
    label: int


class Length(TargetObjective):
    """Say whether a text is long."""

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "texts"
    measures: ClassVar[frozenset[str]] = frozenset()
    example: ClassVar[type] = LengthExample
    reader: ClassVar[str] = f"{__name__}:LengthReader"

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        return ["labels: leave them out"] if target.labels else []

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        return LABELS

    @classmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        return base.sequence_classifier(labels, seed=seed)

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[LengthRow]:
        for record in read_records(source, on_error=on_error):
            yield LengthRow(record.text("text"), record.text("long") == "yes", record.line)

    @classmethod
    def texts(cls, row: LengthRow) -> tuple[str, ...]:
        return (row.text,)

    @classmethod
    def sentence(cls, row: LengthRow) -> Sentence:
        return Sentence("lengths", row.line, row.text.split(), (LABELS[row.is_long],))

    def examples(self, rows: Iterable[LengthRow]) -> list[LengthExample]:
        return [LengthExample(number, self.encoded(row.text), int(row.is_long)) for number, row in enumerate(rows)]

    def encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"])

    def collate(self, examples: Sequence[LengthExample], generator: Generator) -> dict[str, Tensor]:
        rows = [example.input_ids for example in examples]
        batch = {"input_ids": padded(rows, self._tokenizer.pad_token_id), "attention_mask": attention(rows)}
        return {**batch, "labels": torch.tensor([example.label for example in examples])}

    def words(self, example: LengthExample) -> list[tuple[int, int]]:
        return []

    def respelled(self, example: LengthExample, words: Sequence[tuple[int, ...]]) -> LengthExample:
        return replace(example)

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float(),)

    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(scores[0], batch["labels"])

    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        return []

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[LengthExample]) -> Evaluation:
        batch = self.collate(examples, Generator())
        (logits,) = self.scores(model, batch)
        right = (logits.argmax(-1) == batch["labels"]).int().tolist()
        loss = float(self.loss_of((logits,), batch))
        accuracy = sum(right) / len(right)
        metrics = {"accuracy": accuracy, "loss": loss, "size": float(len(right))}
        return Evaluation(accuracy, metrics, tuple((one, 1) for one in right))


class LengthResult(Result):
    """Whether the text is long."""

    is_long: bool

    def columns(self) -> dict[str, Any]:
        return {"is_long": self.is_long}


class LengthReader:
    """Say whether a text of a request is long."""

    forms = ("text",)
    result: ClassVar[type[Result]] = LengthResult
    inputs: ClassVar[Mapping[str, Any]] = {"text": str}
    outputs: ClassVar[Mapping[str, Any]] = {"is_long": bool}

    def __init__(self, tokenizer: Any, composition: Any, limits: Any) -> None:
        self._objective = Length(tokenizer, labels=composition.labels, max_length=composition.max_length)

    def build_shell(self, config: PreTrainedConfig) -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_config(config)

    def prepare(self, item: Input) -> Prepared:
        return Prepared(item, tuple(self._objective.examples([LengthRow(item.text or "", False, 0)])))

    def forward(self, model: PreTrainedModel, pieces: Sequence[LengthExample]) -> list[Output]:
        (logits,) = self._objective.scores(model, self._objective.collate(pieces, Generator()))
        return [(row,) for row in logits]

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> LengthResult:
        [(logits,)] = outputs
        return LengthResult(is_long=bool(logits.argmax()))

    @staticmethod
    def asked(row: LengthRow) -> Input:
        return Input(text=row.text)

    @staticmethod
    def right(row: LengthRow, answer: Mapping[str, Any]) -> tuple[float, float]:
        return float(answer["is_long"] == row.is_long), 1.0


class StrideSettings(OwnSettings):
    """Which weights."""

    stride: int = Field(2, ge=1, description="one of so many weights is selected")


class Stride(SupportMethod):
    """The first K of every n-th weight, trained from the base."""

    name: ClassVar[str] = "stride"
    summary: ClassVar[str] = "every n-th weight"
    phases: ClassVar[tuple[str, ...]] = ("sparse",)
    settings: ClassVar[type[OwnSettings]] = StrideSettings

    def select(
        self, now: Mapping[str, Tensor], start: Mapping[str, Tensor], k: int, *, taken: Mapping[str, Tensor],
        recipe: Recipe, seed: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        found, left = {}, k
        for name, p in now.items():
            found[name] = torch.arange(0, p.numel(), StrideSettings.of(recipe).stride, dtype=torch.int32)[:left]
            left -= len(found[name])
        return found
