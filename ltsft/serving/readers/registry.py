"""How each objective is served. A new kind of target task is one file with a reader and one line here."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ltsft.errors import ReleaseError
from ltsft.release import Composition
from ltsft.serving.answers import Reader
from ltsft.serving.limits import Limits
from ltsft.serving.readers.questions import QuestionReader
from ltsft.serving.readers.texts import TextReader
from ltsft.serving.readers.trees import TreeReader
from ltsft.serving.readers.words import EntityReader, TokenReader

__all__ = ["READERS", "reader_of"]

READERS: dict[str, type[Reader]] = {
    "pos": TokenReader,
    "ner": EntityReader,
    "dp": TreeReader,
    "classification": TextReader,
    "qa": QuestionReader,
}
"""The readers by the name of their objective."""


def reader_of(composition: Composition, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Reader:
    """Make the reader of a composition.

    Raises:
        ReleaseError: its objective cannot be served.
    """
    if composition.objective not in READERS:
        raise ReleaseError(
            f"{composition.slot}: objective {composition.objective!r} cannot be served; allowed are "
            f"{', '.join(sorted(READERS))}"
        )
    return READERS[composition.objective](tokenizer, composition, limits)
