"""Measures of raw text: the numbers that the validation gate compares with its thresholds.

A text is measured in one pass that keeps no line but bounded samples, so that a text of any size can be measured. Each
measure that can point at lines keeps its first few as examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fontTools import unicodedata as scripts  # type: ignore[import-untyped]

from ltsft.config import ANY_SCRIPT, TextGate, script_members
from ltsft.data.characters import UNSPACED, CharacterClasses
from ltsft.data.identity import Identifier
from ltsft.data.measures import EXAMPLES, Examples, Measures, share_of, text_hash
from ltsft.data.mojibake import has_mojibake
from ltsft.data.near_duplicates import find_near_duplicates
from ltsft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TEXT_TITLES", "Line", "measure_text", "most_used_script", "overlap_key"]

# What each measure is called in messages.
TEXT_TITLES = {
    "lines": "number of lines",
    "characters": "number of characters",
    "undecodable_share": "share of lines that are not UTF-8",
    "not_nfc_share": "share of lines that are not in Unicode's form NFC",
    "replacement_share": "share of replacement characters (U+FFFD)",
    "control_share": "share of control, private-use and unassigned characters",
    "byte_order_mark_share": "share of lines with a byte-order mark (U+FEFF) inside the text",
    "invisible_share": "share of direction marks, soft hyphens and other invisible characters",
    "mojibake_share": "share of lines with UTF-8 that was read as Latin-1 or Windows-1251",
    "duplicate_share": "share of lines that repeat an earlier line",
    "near_duplicate_share": "share of lines that are nearly an earlier line",
    "short_line_share": "share of lines under {gate.short_line_characters} characters",
    "long_line_share": "share of lines over {gate.long_line_characters} characters",
    "script_share": "share of letters in {script}",
    "foreign_line_share": "share of lines with most letters not in {script}",
    "other_language_share": "share of lines in another listed language",
    "unknown_share": "share of unknown sub-words under the base's tokenizer",
    "subwords_per_word": "sub-words per word under the base's tokenizer",
    "test_overlap": "share of test sentences that stand in the text",
    "test_line_share": "share of lines that hold a test sentence",
}

_HASHES = 500_000
_COMPARED_LINES = 2_000

_SENTENCE_END = re.compile(r"(?<=[.!?…։።؟۔।])\s+|(?<=[。！？])")
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_LINE_SHARES = (
    "undecodable_share",
    "not_nfc_share",
    "byte_order_mark_share",
    "mojibake_share",
    "short_line_share",
    "long_line_share",
    "foreign_line_share",
    "test_line_share",
)


class Line(NamedTuple):
    """A line of raw text and where it stands."""

    source: str
    number: int
    text: str


def overlap_key(text: str) -> str:
    """Give what two sentences must share to count as the same: letters and digits, without case, space and marks.

    >>> overlap_key("Hann segði: «Ja, takk.»") == overlap_key("hann segði : « ja , takk . »")
    True
    """
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", text).casefold()))


def measure_text(
    lines: Iterable[Line],
    gate: TextGate,
    *,
    script: str,
    tokenizer: PreTrainedTokenizerBase,
    test_sentences: Iterable[str] = (),
    hash_limit: int = _HASHES,
    identify: Identifier | None = None,
    language: str = "",
) -> Measures:
    """Measure raw text in one pass.

    Lines are stripped and empty ones skipped. Bytes that are not UTF-8 are expected as lone surrogates
    (``errors="surrogateescape"``). Shares of characters and lines are exact. The share of duplicate lines is exact
    while the text has at most ``hash_limit`` different lines; beyond that it is measured on the lines whose hash ends
    in s zero bits, with s as small as the limit allows: all copies of a line fall in or out together, so that the
    estimate is not biased. The tokenizer sees ``gate.tokenizer_lines`` lines at most, spaced evenly. Words are divided
    by spaces; in scripts that are written without spaces each character counts as a word.

    A test sentence stands in the text when a whole line, or a whole sentence of a line, has the same letters and digits
    (see `overlap_key`).

    Args:
        lines: where each line stands and its text.
        gate: sets what counts as a short and a long line, and which test sentences are long enough to look for.
        script: ISO 15924 code of the language's script, such as ``Latn`` or ``Jpan`` (see `script_members`).
        tokenizer: the base's.
        test_sentences: sentences that must not be in the text, as text or as words joined by spaces.
        hash_limit: different lines to remember.
        identify: names the language of lines; those that the tokenizer sees are asked about.
        language: what `identify` calls the language of the text.

    Returns:
        The measures, with examples.

    Raises:
        ConfigError: the script is not one that Unicode knows.
    """
    tally = _TextTally(gate, script=script, test_sentences=test_sentences, hash_limit=hash_limit)
    for source, number, raw in lines:
        text = raw.strip()
        if text:
            tally.add(Line(source, number, text))
    values = tally.values()
    values.update(_measure_tokens(tally.sample.lines, tokenizer, tally.examples))
    values["near_duplicate_share"] = _measure_near_duplicates(tally.sample.lines, tally.examples)
    values["other_language_share"] = _measure_languages(tally.sample.lines, identify, language, tally.examples)
    return Measures(values, tally.examples.shown())


def most_used_script(text: str) -> str:
    """Tell the script that most letters of a text are in.

    Args:
        text: some lines of it are enough.

    Returns:
        The ISO 15924 code; ``Jpan`` where there are kana, ``Kore`` where most letters are Hangul, ``Latn`` where there
        are no letters.
    """
    counts = Counter(scripts.script(c) for c in text if unicodedata.category(c)[0] == "L")
    for code in ANY_SCRIPT:
        counts.pop(code, None)
    if not counts:
        return "Latn"
    if counts["Hira"] + counts["Kana"] > 0.1 * counts.total():
        return "Jpan"
    found = counts.most_common(1)[0][0]
    return "Kore" if found == "Hang" else str(found)


class _RepeatCounter:
    """Counts repeats among any number of lines in bounded memory, by adaptive sampling of their hashes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bits = 0
        self._counts: dict[int, int] = {}

    def add(self, text: str) -> bool:
        """Count a line; whether it is known to be a repeat."""
        key = text_hash(text)
        if key & ((1 << self._bits) - 1):
            return False
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        while len(self._counts) > self._limit:
            self._bits += 1
            self._counts = {k: n for k, n in self._counts.items() if not k & ((1 << self._bits) - 1)}
        return count > 0

    def share(self) -> float | None:
        total = sum(self._counts.values())
        return 1 - len(self._counts) / total if total else None


class _EvenSample:
    """At most ``limit`` lines of a stream, spaced evenly: every n-th, with n doubled whenever they get too many."""

    def __init__(self, limit: int) -> None:
        self.lines: list[Line] = []
        self._limit = limit
        self._step = 1
        self._seen = 0

    def add(self, line: Line) -> None:
        if self._seen % self._step == 0:
            self.lines.append(line)
            if len(self.lines) > self._limit:
                self.lines = self.lines[::2]
                self._step *= 2
        self._seen += 1


class _TextTally:
    """What one pass over raw text adds up."""

    def __init__(self, gate: TextGate, *, script: str, test_sentences: Iterable[str], hash_limit: int) -> None:
        self.examples = Examples()
        self.sample = _EvenSample(gate.tokenizer_lines)
        self._gate = gate
        try:
            self._script = script_members(script)
        except ValueError as error:
            raise ConfigError(f"script {script!r}: {error}") from error
        self._classes = CharacterClasses(self._script)
        is_dense = not {"Hani", "Hira", "Kana"}.isdisjoint(self._script)
        self._short = gate.short_line_characters / (3 if is_dense else 1)
        self._repeats = _RepeatCounter(hash_limit)
        self._lengths: Counter[int] = Counter()
        self._characters: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        keys = (overlap_key(sentence) for sentence in test_sentences)
        self._test_keys = {key for key in keys if len(key) >= gate.overlap_characters}
        self._test_found: set[str] = set()

    def add(self, line: Line) -> None:
        text = line.text
        length = len(text)
        classes = text.translate(self._classes)
        declared, foreign = classes.count("d"), classes.count("f")
        control, lost, undecodable = classes.count("c"), classes.count("r"), classes.count("b")
        invisible, marks = classes.count("i"), classes.count("m")
        self._characters.update(
            all=length, declared=declared, foreign=foreign, control=control, lost=lost, invisible=invisible
        )
        # Clipped, so that the table of lengths is bounded too.
        self._lengths[min(length, 100_000)] += 1
        plain = text.isascii()
        self._flag(line, "undecodable_share", undecodable > 0)
        self._flag(line, "not_nfc_share", not plain and not unicodedata.is_normalized("NFC", text))
        self._flag(line, "replacement_share", lost > 0)
        self._flag(line, "control_share", control > 0)
        self._flag(line, "mojibake_share", not plain and has_mojibake(text, self._script))
        self._flag(line, "byte_order_mark_share", marks > 0)
        self._flag(line, "invisible_share", invisible > 0)
        self._flag(line, "duplicate_share", self._repeats.add(text))
        self._flag(line, "short_line_share", length < self._short)
        self._flag(line, "long_line_share", length > self._gate.long_line_characters)
        self._flag(line, "foreign_line_share", foreign > declared)
        self._flag(line, "test_line_share", bool(self._test_keys) and self._is_test(text))
        if not undecodable:
            self.sample.add(line)

    def _flag(self, line: Line, measure: str, is_found: bool) -> None:
        if is_found:
            self._lines[measure] += 1
            self.examples.add(measure, line.source, line.number, line.text)

    def _is_test(self, text: str) -> bool:
        key = overlap_key(text)
        keys = {key}
        pieces = _SENTENCE_END.split(text)
        if len(pieces) > 1:
            keys.update(overlap_key(piece) for piece in pieces)
        found = keys & self._test_keys
        self._test_found |= found
        return bool(found)

    def values(self) -> dict[str, float | None]:
        lines = sum(self._lengths.values())
        characters = self._characters["all"]
        letters = self._characters["declared"] + self._characters["foreign"]
        self.examples.copy("foreign_line_share", "script_share")
        self.examples.copy("test_line_share", "test_overlap")
        return {
            "lines": lines,
            "characters": characters,
            "line_characters_median": self._median(lines),
            "line_characters_mean": share_of(characters, lines),
            **{name: share_of(self._lines[name], lines) for name in _LINE_SHARES},
            "duplicate_share": self._repeats.share(),
            "replacement_share": share_of(self._characters["lost"], characters),
            "control_share": share_of(self._characters["control"], characters),
            "invisible_share": share_of(self._characters["invisible"], characters),
            "script_share": share_of(self._characters["declared"], letters),
            "test_overlap": share_of(len(self._test_found), len(self._test_keys)),
        }

    def _median(self, lines: int) -> float | None:
        below = 0
        for length in sorted(self._lengths):
            below += self._lengths[length]
            if 2 * below >= lines:
                return length
        return None


def _measure_near_duplicates(lines: Sequence[Line], examples: Examples) -> float | None:
    compared = lines[:: max(1, len(lines) // _COMPARED_LINES)]
    found = find_near_duplicates([line.text for line in compared])
    for line, is_near in zip(compared, found, strict=True):
        if is_near:
            examples.add("near_duplicate_share", line.source, line.number, line.text)
    return share_of(sum(found), len(found))


def _measure_languages(
    lines: Sequence[Line], identify: Identifier | None, own: str, examples: Examples
) -> float | None:
    """Give the share of sampled lines in another language; the examples are of the one that has most."""
    if identify is None:
        return None
    named = identify([line.text for line in lines])
    others = [(line, name) for line, name in zip(lines, named, strict=True) if name is not None and name != own]
    counts = Counter(name for _, name in others)
    for line, name in sorted(others, key=lambda item: -counts[item[1]]):
        examples.add("other_language_share", line.source, line.number, f"{name}: {line.text}")
    return share_of(len(others), len(lines))


def _measure_tokens(
    lines: Sequence[Line], tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> dict[str, float | None]:
    """Measure the tokenizer on sampled lines; the examples are the worst lines, not the first."""
    unknown_id = tokenizer.unk_token_id
    words = subwords = unknown = 0
    worst_unknown: list[tuple[float, Line]] = []
    worst_length: list[tuple[float, Line]] = []
    for start in range(0, len(lines), 1000):
        batch = lines[start : start + 1000]
        encoded = tokenizer([line.text for line in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for line, ids in zip(batch, encoded, strict=True):
            lost = ids.count(unknown_id) if unknown_id is not None else 0
            in_line = len(_WORD.findall(line.text)) or 1
            words, subwords, unknown = words + in_line, subwords + len(ids), unknown + lost
            worst_length.append((len(ids) / in_line, line))
            if lost:
                worst_unknown.append((lost / len(ids), line))
    for measure, worst in (("unknown_share", worst_unknown), ("subwords_per_word", worst_length)):
        for _, line in sorted(worst, key=lambda item: -item[0])[:EXAMPLES]:
            examples.add(measure, line.source, line.number, line.text)
    return {"unknown_share": share_of(unknown, subwords), "subwords_per_word": share_of(subwords, words)}
