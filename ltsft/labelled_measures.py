"""Measures of labelled sentences: the numbers that the validation gate compares with its thresholds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ltsft.gates import LabelledGate
from ltsft.measures import Examples, Measures, share_of, text_hash

__all__ = ["LABELLED_TITLES", "Sentence", "measure_labelled"]

# What each measure is called in messages.
LABELLED_TITLES = {
    "sentences": "number of sentences",
    "undeclared_share": "share of words whose label is not declared",
    "misaligned_share": "share of sentences with more or fewer labels than words",
    "empty_word_share": "share of sentences with an empty word or none at all",
    "long_sentence_share": "share of sentences over {gate.long_sentence_words} words",
    "label_share": "share of the most frequent label",
    "labels_present": "share of declared labels that occur",
    "label_agreement": "share of frequent words with their usual label",
    "duplicate_share": "share of sentences that repeat one of the same split",
    "split_overlap": "share of sentences that occur in an earlier split",
}


class Sentence(NamedTuple):
    """A labelled sentence and where it begins."""

    source: str
    number: int
    words: Sequence[str]
    labels: Sequence[str]


def measure_labelled(
    splits: Mapping[str, Iterable[Sentence]], gate: LabelledGate, *, labels: Sequence[str]
) -> dict[str, Measures]:
    """Measure the splits of labelled data, in the order given.

    A split is compared with all splits before it, so training data comes first. Labels that are missing altogether are
    counted in splits whose name ends in ``train`` alone: a small test set may well lack some.

    Args:
        splits: name -> sentences; each is read once and kept as hashes.
        gate: sets what counts as a long sentence and which sentences are long enough to be looked at for duplicates.
        labels: the declared labels.

    Returns:
        Name of the split -> its measures.
    """
    earlier: dict[int, str] = {}
    measured = {}
    for name, sentences in splits.items():
        tally = _LabelledTally(gate, labels, earlier)
        for sentence in sentences:
            tally.add(sentence)
        measured[name] = Measures(tally.values(is_train=name.endswith("train")), tally.examples.shown())
        earlier |= dict.fromkeys(tally.seen, name)
    return measured


class _LabelledTally:
    """What one pass over a split adds up."""

    def __init__(self, gate: LabelledGate, labels: Sequence[str], earlier: Mapping[int, str]) -> None:
        self.examples = Examples()
        self.seen: set[int] = set()
        self._gate = gate
        self._declared = frozenset(labels)
        self._earlier = earlier
        self._labels: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._word_labels: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, sentence: Sentence) -> None:
        words, labels = sentence.words, sentence.labels
        self._counts["sentences"] += 1
        self._counts["words"] += len(words)
        self._labels.update(labels)
        self._flag(sentence, "undeclared_share", sum(label not in self._declared for label in labels))
        self._flag(sentence, "misaligned_share", len(words) != len(labels))
        self._flag(sentence, "empty_word_share", not words or any(not word.strip() for word in words))
        self._flag(sentence, "long_sentence_share", len(words) > self._gate.long_sentence_words)
        for word, label in zip(words, labels, strict=False):
            self._word_labels[word][label] += 1
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
        present = sum(self._labels[label] >= self._gate.label_occurrences for label in self._declared)
        values: dict[str, float | None] = {
            "sentences": counts["sentences"],
            "words": counts["words"],
            "undeclared_share": share_of(counts["undeclared_share"], labels),
            "misaligned_share": share_of(counts["misaligned_share"], counts["sentences"]),
            "empty_word_share": share_of(counts["empty_word_share"], counts["sentences"]),
            "long_sentence_share": share_of(counts["long_sentence_share"], counts["sentences"]),
            "sentence_words_mean": share_of(counts["words"], counts["sentences"]),
            "label_share": max(self._labels.values()) / labels if labels else None,
            "labels_present": present / len(self._declared) if is_train else None,
            "label_agreement": self._agreement(),
            "duplicate_share": share_of(counts["duplicate_share"], counts["compared"]),
            "split_overlap": share_of(counts["split_overlap"], counts["compared"]) if self._earlier else None,
        }
        return values

    def _agreement(self) -> float | None:
        frequent = [c for c in self._word_labels.values() if c.total() >= self._gate.agreement_occurrences]
        total = sum(c.total() for c in frequent)
        return share_of(sum(max(c.values()) for c in frequent), total) if len(frequent) >= 10 else None
