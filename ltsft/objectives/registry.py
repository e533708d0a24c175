"""The objectives of target tasks by name. Another one is a file beside this and a line here (docs/objectives.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ltsft.base import Base
from ltsft.config import Source, TargetTask
from ltsft.data import RowError
from ltsft.errors import CompositionError
from ltsft.objectives.classification import Classification
from ltsft.objectives.dependency import DependencyParsing
from ltsft.objectives.entities import NamedEntities
from ltsft.objectives.objective import TargetObjective
from ltsft.objectives.question_answering import QuestionAnswering
from ltsft.objectives.token_classification import TokenClassification
from ltsft.sft import SFT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OBJECTIVES: dict[str, type[TargetObjective]] = {
    "pos": TokenClassification,
    "dp": DependencyParsing,
    "ner": NamedEntities,
    "classification": Classification,
    "qa": QuestionAnswering,
}


def read_labelled(
    target: TargetTask, sources: tuple[Source, ...], *, on_error: Callable[[RowError], None] | None = None
) -> Iterator[Any]:
    """Read the rows of a target task, one source after the other.

    Args:
        target: its objective says how its rows are read.
        sources: what to read, in this order.
        on_error: called with what is wrong with a malformed row, which is then left out; without it the first one ends
            the reading.
    """
    for source in sources:
        yield from OBJECTIVES[target.objective].read(target, source, on_error=on_error)


def model_of(base: Base, task: SFT) -> PreTrainedModel:
    """Load the base with the kind of head that a task SFT has.

    Raises:
        CompositionError: the SFT is of an objective that this version does not know.
    """
    name = task.details.get("objective", "pos")
    if name not in OBJECTIVES:
        raise CompositionError(
            f"{task.title} is of objective {name!r}; allowed are {', '.join(OBJECTIVES)}: update ltsft"
        )
    return OBJECTIVES[name].new_model(base, task.labels, seed=0)
