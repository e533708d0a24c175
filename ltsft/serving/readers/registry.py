"""The reader of each objective: the objective names it (`ltsft.objectives.objective.TargetObjective`)."""

from __future__ import annotations

from pkgutil import resolve_name

from transformers import PreTrainedTokenizerBase

from ltsft.errors import ReleaseError
from ltsft.objectives import OBJECTIVES
from ltsft.release import Composition
from ltsft.serving.answers import Reader
from ltsft.serving.limits import Limits

__all__ = ["reader_class", "reader_of"]


def reader_class(objective: str) -> type[Reader]:
    """Give how an objective is served.

    Args:
        objective: its name.

    Raises:
        ReleaseError: there is no such objective, or it names no reader.
    """
    served = [name for name, found in OBJECTIVES.items() if found.reader]
    if objective not in served:
        raise ReleaseError(
            f"objective {objective!r} cannot be served or released; allowed are {', '.join(sorted(served))}. "
            "ltsft compose writes it as a folder"
        )
    reader: type[Reader] = resolve_name(OBJECTIVES[objective].reader)
    return reader


def reader_of(composition: Composition, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Reader:
    """Make the reader of a composition.

    Raises:
        ReleaseError: its objective cannot be served.
    """
    try:
        reader = reader_class(composition.objective)
    except ReleaseError as error:
        raise ReleaseError(f"{composition.slot}: {error}") from error
    return reader(tokenizer, composition, limits)
