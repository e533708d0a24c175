"""Extractive question answering: the span of a context that answers a question, scored as SQuAD does (F1 and EM)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ltsft.base import Base
from ltsft.config import Source, TargetTask
from ltsft.data import OnError, Record, RowError, Sentence, read_records
from ltsft.objectives.demands import columns_within, no_labels, schemes_within
from ltsft.objectives.lengths import attention, like_lengths, padded
from ltsft.objectives.objective import Belief, Evaluation, TargetObjective
from ltsft.objectives.spans import spliced, words_by_marks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLUMNS = {"question": "question", "context": "context", "answers": "answers"}
OVERLAP = 0.33
"""Share of a window that the next one repeats, as in SQuAD's usual 128 of 384 sub-words."""
QUESTION_SHARE = 0.5
"""The most of a window that a question may take; the end of a longer one is left out."""
LONGEST_ANSWER = 30
"""Sub-words of an answer, at most."""
SMALLEST = 1e-12
"""Probability that stands for none, so that it has a logarithm."""
CANDIDATES = 20
"""Best starts and best ends of a window that are tried together."""


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question, its context and the answers that people gave.

    Attributes:
        question: the question.
        context: the text that holds the answer.
        answers: text and place of each answer: the first character of it in the context, from 0.
        line: number of its line in the file, from 1.
        source: the source that it was read from, for messages.
    """

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    line: int
    source: str


@dataclass(frozen=True)
class Window:
    """A question with a window of its context, as sub-words.

    Attributes:
        sentence: number of the question.
        input_ids: sub-words with special tokens.
        type_ids: which of the two texts a sub-word is of, where the tokenizer says it; empty where it does not.
        offsets: where a sub-word of the context stands in it, (start, end) in characters; (-1, -1) for all others.
        start: place of the first sub-word of the answer; 0, the first special token, where the window has no answer.
        end: place of its last sub-word, likewise.
        context: the whole context.
        answers: the texts of all answers.
    """

    sentence: int
    input_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    start: int
    end: int
    context: str
    answers: tuple[str, ...]


class QuestionAnswering(TargetObjective):
    """Point at the answer to a question.

    Args:
        tokenizer: the base's tokenizer.
        labels: none.
        max_length: sub-words in a window; a longer context is read in windows that overlap by a third.
    """

    metric: ClassVar[str] = "F1"
    unit: ClassVar[str] = "questions"
    shown: ClassVar[dict[str, str]] = {"exact_match": "exact match"}
    measures: ClassVar[frozenset[str]] = frozenset({"empty_text_share", "answer_mismatch_share"})
    example: ClassVar[type] = Window
    reader: ClassVar[str] = "ltsft.serving.readers.questions:QuestionReader"

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """No labels; records whose fields may be lists."""
        columns = columns_within(target, COLUMNS)
        return [*no_labels(target), *schemes_within(target, ("jsonl", "parquet", "hf")), *columns]

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """No labels: the head gives the start and the end of the answer."""
        return ()

    @classmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load the base with a new head that points at answers."""
        return base.question_answerer(seed=seed)

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[QuestionRow]:
        """Read questions in SQuAD's fields, one a record: `answers` is ``{text: [...], answer_start: [...]}``."""
        columns = COLUMNS | target.columns
        for record in read_records(source, on_error=on_error):
            try:
                answers = _answers(record, columns["answers"])
                question, context = record.text(columns["question"]), record.value(columns["context"])
                if not isinstance(context, str):
                    raise RowError(record.source, record.line, f"column {columns['context']!r} must hold text")
            except RowError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            yield QuestionRow(question, context, answers, record.line, record.source)

    @classmethod
    def texts(cls, row: QuestionRow) -> tuple[str, ...]:
        """The question and its context."""
        return (row.question, row.context)

    @classmethod
    def sentence(cls, row: QuestionRow) -> Sentence:
        """The words; an empty text and an answer that is not where it is said to be are problems."""
        problems = {}
        empty = [n for n, text in (("question", row.question), ("context", row.context)) if not text.strip()]
        if empty:
            problems["empty_text_share"] = f"{' and '.join(empty)} empty"
        slipped = [(text, start) for text, start in row.answers if row.context[start : start + len(text)] != text]
        if slipped:
            text, start = slipped[0]
            found = row.context[max(start, 0) : start + len(text)]
            problems["answer_mismatch_share"] = f"{text!r} at character {start}, where there is {found!r}"
        words = (*row.question.split(), *row.context.split())
        return Sentence(PurePosixPath(row.source).name, row.line, words, (), problems)

    def examples(self, rows: Iterable[QuestionRow]) -> list[Window]:
        """Turn rows into windows."""
        return [window for number, row in enumerate(rows) for window in self._windows(number, row)]

    def _windows(self, number: int, row: QuestionRow) -> Iterator[Window]:
        encoded = self._tokenizer(
            self.shortened(row.question),
            row.context,
            truncation="only_second",
            max_length=self._max_length,
            stride=int(self._max_length * OVERLAP * (1 - QUESTION_SHARE)),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        answer, first = row.answers[0]
        last = first + len(answer)
        types = encoded.get("token_type_ids")
        for i, ids in enumerate(encoded["input_ids"]):
            parts = encoded.sequence_ids(i)
            offsets = [
                (int(a), int(b)) if part == 1 and b > a else (-1, -1)
                for part, (a, b) in zip(parts, encoded["offset_mapping"][i], strict=True)
            ]
            inside = [place for place, (a, b) in enumerate(offsets) if a < last and b > first]
            known = [b for _, b in offsets if b > 0]
            is_whole = bool(inside) and min(a for a, _ in offsets if a >= 0) <= first and max(known) >= last
            start, end = (inside[0], inside[-1]) if is_whole else (0, 0)
            type_ids = tuple(types[i]) if types is not None else ()
            texts = tuple(text for text, _ in row.answers)
            yield Window(number, tuple(ids), type_ids, tuple(offsets), start, end, row.context, texts)

    def shortened(self, question: str) -> str:
        """Leave out the end of a question that takes more than its share of a window."""
        room = int(self._max_length * QUESTION_SHARE) - 4
        encoded = self._tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        return question if len(offsets) <= room else question[: offsets[room - 1][1]]

    def collate(self, examples: Sequence[Window], generator: Generator) -> dict[str, Tensor]:
        """Pad to the longest.

        `input_ids`, `attention_mask` and, where there are, `token_type_ids` are (batch, length), `starts` and `ends`
        (batch,).
        """
        rows = [e.input_ids for e in examples]
        pad: int = self._tokenizer.pad_token_id
        batch = {"input_ids": padded(rows, pad), "attention_mask": attention(rows)}
        if examples[0].type_ids:
            batch["token_type_ids"] = padded([e.type_ids for e in examples], 0)
        starts, ends = torch.tensor([e.start for e in examples]), torch.tensor([e.end for e in examples])
        return {**batch, "starts": starts, "ends": ends}

    def words(self, example: Window) -> list[tuple[int, int]]:
        """Give the sub-words of each word, as (first, last + 1), by the marks of the tokenizer."""
        return words_by_marks(self._tokenizer, example.input_ids)

    def respelled(self, example: Window, words: Sequence[tuple[int, ...]]) -> Window:
        """Give the window with other sub-words for its words; it can be run, but not scored: it has no answer."""
        spans = self.words(example)
        types = [
            [example.type_ids[a]] * len(word) for (a, _), word in zip(spans, words, strict=True) if example.type_ids
        ]
        ids = spliced(example.input_ids, spans, words)
        type_ids = spliced(example.type_ids, spans, types) if types else ()
        return replace(example, input_ids=ids, type_ids=type_ids, offsets=(), start=0, end=0)

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Give the logits of start and end, each (batch, length), in float32."""
        return self._logits(model, batch)

    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        """Give the log-probabilities of start and end, by stretch: the sum over the sub-words that are in it."""
        count = int(stretches.max()) + 1
        made = []
        for logits in scores:
            shares = functional.softmax(logits, dim=-1).masked_fill(stretches < 0, 0.0)
            summed = shares.new_zeros(len(shares), count).scatter_add(1, stretches.clamp(min=0), shares)
            made.append((0.5, summed.clamp(min=SMALLEST).log()))
        return made

    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        """Give the mean of the cross-entropies of start and end, in nats."""
        starts, ends = scores
        return (functional.cross_entropy(starts, batch["starts"]) + functional.cross_entropy(ends, batch["ends"])) / 2

    @staticmethod
    def _logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Give the logits of start and end, each (batch, length); those of padding are as low as can be."""
        outputs = model(**{name: value for name, value in batch.items() if name not in ("starts", "ends")})
        is_padding = batch["attention_mask"] == 0
        lowest = torch.finfo(torch.float32).min
        starts: Tensor = outputs.start_logits.float().masked_fill(is_padding, lowest)
        ends: Tensor = outputs.end_logits.float().masked_fill(is_padding, lowest)
        return starts, ends

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[Window]) -> Evaluation:
        """Give the mean F1 over questions, and the share of exact matches beside it.

        The answer is the span with the highest sum of logits over all windows of a question. Each is compared with the
        answer of people that it is most like.
        """
        device = next(model.parameters()).device
        best: dict[int, Span] = {}
        loss = 0.0
        for chunk in like_lengths(examples):
            batch = {k: v.to(device) for k, v in self.collate(chunk, torch.Generator()).items()}
            starts, ends = self._logits(model, batch)
            for logits, gold in ((starts, batch["starts"]), (ends, batch["ends"])):
                loss += float(functional.cross_entropy(logits, gold, reduction="sum")) / 2
            for window, start, end in zip(chunk, starts.cpu(), ends.cpu(), strict=True):
                found = best_span(window, start, end)
                if window.sentence not in best or found.score > best[window.sentence].score:
                    best[window.sentence] = found
        gold_answers = {window.sentence: window.answers for window in examples}
        scored = []
        for number in sorted(gold_answers):
            answer = best[number].text
            f1 = max(answer_f1(answer, gold) for gold in gold_answers[number])
            exact = max(normalised(answer) == normalised(gold) for gold in gold_answers[number])
            scored.append((f1, exact))
        count = max(len(scored), 1)
        metrics = {
            "f1": sum(f1 for f1, _ in scored) / count,
            "exact_match": sum(exact for _, exact in scored) / count,
            "loss": loss / max(len(examples), 1),
            "size": float(len(scored)),
        }
        return Evaluation(metrics["f1"], metrics, tuple((f1, 1) for f1, _ in scored))


def _answers(record: Record, column: str) -> tuple[tuple[str, int], ...]:
    value: Any = record.value(column)
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    answers: list[tuple[Any, Any]] = []
    if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
        answers = list(zip(texts, starts, strict=True))
    if not answers or not all(isinstance(text, str) and text and type(start) is int for text, start in answers):
        raise RowError(
            record.source,
            record.line,
            f"column {column!r} must be {{text: [...], answer_start: [...]}} with one answer at least, "
            f"got {str(value)[:60]}",
        )
    return tuple(answers)


class Span(NamedTuple):
    """A part of the context of a window.

    Attributes:
        score: sum of the logits of its first and its last sub-word; minus infinity for no span at all.
        first: place of its first sub-word; -1 for none.
        last: place of its last one.
        start: place of its first character in the context.
        end: place behind its last one.
        text: what it says.
    """

    score: float
    first: int
    last: int
    start: int
    end: int
    text: str


def best_span(window: Window, starts: Tensor, ends: Tensor) -> Span:
    """Give the best span of a window.

    Args:
        window: the window, with `length` sub-words.
        starts: logits of the first sub-word of the answer, (length or more,).
        ends: logits of its last one.
    """
    best = Span(-torch.inf, -1, -1, 0, 0, "")
    is_context = torch.tensor([a >= 0 for a, _ in window.offsets])
    length = len(window.offsets)
    first = starts[:length].masked_fill(~is_context, -torch.inf)
    last = ends[:length].masked_fill(~is_context, -torch.inf)
    count = min(CANDIDATES, int(is_context.sum()))
    for i in first.topk(count).indices.tolist():
        for j in last.topk(count).indices.tolist():
            score = float(first[i] + last[j])
            if i <= j < i + LONGEST_ANSWER and score > best.score:
                start, end = window.offsets[i][0], window.offsets[j][1]
                best = Span(score, i, j, start, end, window.context[start:end])
    return best


def normalised(answer: str) -> str:
    """Normalise as SQuAD's script does: lower case, no punctuation, no English articles, single spaces."""
    lowered = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def answer_f1(answer: str, gold: str) -> float:
    """Give the F1 of the words that two normalised answers have in common (Rajpurkar et al. 2016, section 6.1)."""
    given, wanted = normalised(answer).split(), normalised(gold).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else float(given == wanted == [])
