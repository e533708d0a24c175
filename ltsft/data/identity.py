"""Which language a text is in, by lists of words that occur mostly in one language: no model, and no download.

Script alone cannot tell Faroese from Icelandic. A line votes for the list that most of its words are in; what is told
of a text is the share of lines that vote for another language than its own, and which one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import PurePosixPath

from ltsft.data.locations import is_url, read_bytes, shown
from ltsft.errors import SourceError

__all__ = ["Identifier", "by_word_lists"]

Identifier = Callable[[Sequence[str]], "list[str | None]"]
"""Names the language of each line, None where it cannot tell; `measure_text` takes one from any package."""

LEAST_WORDS = 3
"""Words of a list that a line needs to vote for it: fewer may be names."""

_WORD = re.compile(r"[^\W\d_]+(?:['’ʼ-][^\W\d_]+)*")


def by_word_lists(folder: str, own: str, sisters: Collection[str] = ()) -> Identifier:
    """Make an identifier from lists of words.

    A line is in the language whose list most of its words are in, three at least, and more than in the lists of its own
    language and of its sisters together. Lists are read when lines come, one after the other, and of each only the
    words that are in these lines are kept.

    Args:
        folder: local folder or URL with a file ``NAME.txt`` or ``NAME.txt.gz`` for each list.
        own: name of the list of the text's own language.
        sisters: names of lists that count as the own one.

    Raises:
        SourceError: the folder cannot be read, or has no such list.
    """
    places = dict(_lists(folder))
    for name in (own, *sisters):
        if name not in places:
            raise SourceError(
                f"{shown(folder)} has no word list {name} ({name}.txt or {name}.txt.gz among {len(places)} lists); "
                "mend word_lists in the project file, or leave the language out of its names"
            )

    def identify(lines: Sequence[str]) -> list[str | None]:
        split = [_WORD.findall(line) for line in lines]
        lists_of = _found({word for words in split for word in words}, places)
        home = {own, *sisters}
        return [_vote(words, lists_of, home, own) for words in split]

    return identify


def _vote(words: Sequence[str], lists_of: dict[str, set[str]], home: Collection[str], own: str) -> str | None:
    hits: Counter[str] = Counter()
    at_home = 0
    for word in words:
        named = lists_of.get(word, ())
        hits.update(name for name in named if name not in home)
        at_home += any(name in home for name in named)
    [(best, count)] = hits.most_common(1) or [("", 0)]
    if count >= LEAST_WORDS and count > at_home:
        return best
    return own if at_home else None


def _found(words: set[str], places: dict[str, str]) -> dict[str, set[str]]:
    lists_of: defaultdict[str, set[str]] = defaultdict(set)
    for name, place in places.items():
        try:
            listed = b"".join(read_bytes(place)).decode().split("\n")
        except UnicodeDecodeError as error:
            raise SourceError(f"the word list {shown(place)} is not UTF-8: {error}") from error
        for word in words.intersection(listed):
            lists_of[word].add(name)
    return dict(lists_of)


def _lists(folder: str) -> Iterator[tuple[str, str]]:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(folder)
    try:
        files = sorted(str(entry) for entry in filesystem.ls(path, detail=False))
    except (OSError, ValueError) as error:
        raise SourceError(f"the word lists in {shown(folder)} cannot be read: {type(error).__name__}") from error
    for file in files:
        name, dot, ending = PurePosixPath(file).name.partition(".")
        if dot and ending in ("txt", "txt.gz"):
            yield name, f"{folder.rstrip('/')}/{name}.{ending}" if is_url(folder) else file
