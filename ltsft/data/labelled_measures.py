"""Measures of labelled sentences: the numbers that the validation gate compares with its thresholds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ltsft.config import LabelledGate
from ltsft.data.measures import Examples, Measures, share_of, text_hash

__all__ = ["BAD_ROWS", "LABELLED_TITLES", "WORD_MEASURES", "Malformed", "Sentence", "measure_labelled"]

# What each measure is called in messages.
LABELLED_TITLES = {
    "sentences": "number of sentences",
    "malformed_share": "share of rows that cannot be read",
    "undeclared_share": "share of labels that are not declared",
    "misaligned_share": "share of sentences with more or fewer labels than words",
    "empty_word_share": "share of sentences with an empty word or none at all",
    "empty_text_share": "share of rows with an empty text",
    "bio_break_share": "share of sentences that break BIO",
    "answer_mismatch_share": "share of questions with an answer that is not where it is said to be",
    "long_sentence_share": "share of sentences over {gate.long_sentence_words} words",
    "label_share": "share of the most frequent label",
    "labels_present": "share of declared labels that occur",
    "label_agreement": "share of frequent words with their usual label",
    "duplicate_share": "share of sentences that repeat one of the same split",
    "split_overlap": "share of sentences that occur in an earlier split",
}


# Measures that apply where each word has a label.
WORD_MEASURES = frozenset({"misaligned_share", "empty_word_share", "long_sentence_share", "label_agreement"})
# Measures that count rows in which something is wrong, whatever the others are like.
BAD_ROWS = (
    "malformed_share",
    "undeclared_share",
    "misaligned_share",
    "empty_word_share",
    "empty_text_share",
    "bio_break_share",
    "answer_mismatch_share",
)
# Measures that an objective asks for: see `TargetObjective.measures`.
OPTIONAL = WORD_MEASURES | {"empty_text_share", "bio_break_share", "answer_mismatch_share"}


class Sentence(NamedTuple):
    """A labelled sentence (or pair, or question) and where it begins.

    `problems` has, by the name of a measure, what of it is wrong in this sentence.
    """

    source: str
    number: int
    words: Sequence[str]
    labels: Sequence[str]
    problems: Mapping[str, str] = {}


class Malformed(NamedTuple):
    """A row that could not be read: where it is, and why."""

    source: str
    number: int
    reason: str


def measure_labelled(
    splits: Mapping[str, Iterable[Sentence | Malformed]],
    gate: LabelledGate,
    *,
    labels: Sequence[str],
    measures: frozenset[str] = WORD_MEASURES,
    background: str = "",
) -> dict[str, Measures]:
    """Measure the splits of labelled data, in the order given.

    A split is compared with all splits before it, so training data comes first. Labels that are missing altogether are
    counted in splits whose name ends in ``train`` alone: a small test set may well lack some.

    Args:
        splits: name -> sentences, and rows that could not be read; each is read once and kept as hashes.
        gate: sets what counts as a long sentence and which sentences are long enough to be looked at for duplicates.
        labels: the declared labels.
        measures: which of the measures that not every objective has apply.
        background: a label that does not count as the most frequent one, such as ``O``; none if empty.

    Returns:
        Name of the split -> its measures.
    """
    earlier: dict[int, str] = {}
    measured = {}
    for name, sentences in splits.items():
        tally = _LabelledTally(gate, labels, earlier, measures, background)
        for sentence in sentences:
            tally.add(sentence)
        values = tally.values(is_train=name.endswith("train"))
        applying = {m: None if m in OPTIONAL - measures else value for m, value in values.items()}
        measured[name] = Measures(applying, tally.examples.shown())
        earlier |= dict.fromkeys(tally.seen, name)
    return measured


_OF_SENTENCES = (
    "misaligned_share",
    "empty_word_share",
    "empty_text_share",
    "bio_break_share",
    "answer_mismatch_share",
    "long_sentence_share",
)


class _LabelledTally:
    """What one pass over a split adds up."""

    def __init__(
        self,
        gate: LabelledGate,
        labels: Sequence[str],
        earlier: Mapping[int, str],
        measures: frozenset[str],
        background: str,
    ) -> None:
        self.examples = Examples()
        self.seen: set[int] = set()
        self._gate = gate
        self._declared = frozenset(labels)
        self._earlier = earlier
        self._measures = measures
        self._background = background
        self._labels: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._word_labels: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, sentence: Sentence | Malformed) -> None:
        if isinstance(sentence, Malformed):
            self._counts["malformed"] += 1
            self.examples.add("malformed_share", *sentence)
            return
        words, labels = sentence.words, sentence.labels
        self._counts["sentences"] += 1
        self._counts["words"] += len(words)
        self._labels.update(labels)
        self._flag(sentence, "undeclared_share", sum(label not in self._declared for label in labels))
        self._flag(sentence, "long_sentence_share", len(words) > self._gate.long_sentence_words)
        if "misaligned_share" in self._measures:
            self._flag(sentence, "misaligned_share", len(words) != len(labels))
            self._flag(sentence, "empty_word_share", not words or any(not word.strip() for word in words))
        if "label_agreement" in self._measures:
            for word, label in zip(words, labels, strict=False):
                self._word_labels[word][label] += 1
        for measure, problem in sentence.problems.items():
            self._counts[measure] += 1
            self.examples.add(measure, sentence.source, sentence.number, problem)
        if len(words) >= self._gate.duplicate_words:
            key = text_hash("\n".join(words).casefold())
            self._counts["compared"] += 1
            self._flag(sentence, "duplicate_share", key in self.seen)
            self._flag(sentence, "split_overlap", key in self._earlier)
            self.seen.add(key)

    def _flag(self, sentence: Sentence, measure: str, count: int) -> None:
        if count:
            self._counts[measure] += count
            shown = " ".join(sentence.words)
            if measure == "undeclared_share":
                strange = sorted(set(sentence.labels) - self._declared)
                shown = f"{', '.join(map(repr, strange))} in {shown}"
            elif measure == "misaligned_share":
                shown = f"{len(sentence.words)} words, {len(sentence.labels)} labels: {shown}"
            self.examples.add(measure, sentence.source, sentence.number, shown)

    def values(self, *, is_train: bool) -> dict[str, float | None]:
        counts = self._counts
        labels = sum(self._labels.values())
        counted = {label: count for label, count in self._labels.items() if label != self._background}
        read = counts["sentences"] + counts["malformed"]
        present = sum(self._labels[label] >= self._gate.label_occurrences for label in self._declared)
        values: dict[str, float | None] = {
            "sentences": counts["sentences"],
            "words": counts["words"],
            "malformed_share": share_of(counts["malformed"], read),
            "undeclared_share": share_of(counts["undeclared_share"], labels),
            **{name: share_of(counts[name], counts["sentences"]) for name in _OF_SENTENCES},
            "sentence_words_mean": share_of(counts["words"], counts["sentences"]),
            "label_share": share_of(max(counted.values(), default=0), sum(counted.values())),
            "labels_present": share_of(present, len(self._declared)) if is_train else None,
            "label_agreement": self._agreement(),
            "duplicate_share": share_of(counts["duplicate_share"], counts["compared"]),
            "split_overlap": share_of(counts["split_overlap"], counts["compared"]) if self._earlier else None,
        }
        return values

    def _agreement(self) -> float | None:
        frequent = [c for c in self._word_labels.values() if c.total() >= self._gate.agreement_occurrences]
        total = sum(c.total() for c in frequent)
        return share_of(sum(max(c.values()) for c in frequent), total) if len(frequent) >= 10 else None
