"""How flows end: what was refused and what a service kept from being done are two things, told by a state's name.

    Completed              all of it was done
    Completed  Refused     all of it was done, and a gate said no to something: that is the outcome
    Failed     Refused     something was not made, because a verdict stands against it: it is not tried again
    Failed     Unavailable something was not made, because a service stayed away or refused: it is tried again
    Failed     Failed      a bug, or a run that crashed too often

Nobody reads another's message to know which it was: names travel with the states, also from one pod to another.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ParamSpec, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from ltsft.errors import InterruptedTraining, LtsftError, ServiceError, is_verdict
from tasks.orchestration.stopping import remembering_orders, stop_if_asked
from tasks.settings import read_settings

LONGER = 6
"""Each pause before another attempt is so many times as long as the one before."""
_MOST_NAMED = 4
_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


class Why(StrEnum):
    """Why something was not done; the names of the states that say so, the worst last."""

    REFUSED = "Refused"
    UNAVAILABLE = "Unavailable"
    FAILED = "Failed"


@dataclass(frozen=True)
class Shortfall:
    """Something that was not done.

    Attributes:
        reason: in words, for people.
        why: a verdict, a service, or a bug.
        behind: subjects of what is to be mended first, because this was not made for their sake alone.
    """

    reason: str
    why: Why
    behind: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, error: LtsftError) -> Shortfall:
        """Say what an error of ours kept from being done."""
        return cls(str(error), Why.REFUSED if is_verdict(error) else Why.UNAVAILABLE)


Shortfalls = Mapping[str, Shortfall]
"""By subject of a product, why it could not be made."""


def shortfall_of(state: State[Any]) -> Shortfall | None:
    """Say what a flow run did not do; None if it did all."""
    if state.is_completed():
        return None
    is_ours = state.is_failed() and state.name in (Why.REFUSED, Why.UNAVAILABLE)
    return Shortfall(state.message or f"ended as {state.name}", Why(str(state.name)) if is_ours else Why.FAILED)


def is_away(state: State[Any]) -> bool:
    """Say whether a flow run ended because a service stayed away or refused."""
    return state.is_failed() and state.name == Why.UNAVAILABLE


def is_refused(state: State[Any]) -> bool:
    """Say whether a flow run ended with a verdict against something, whether that was its outcome or its failure."""
    return state.name == Why.REFUSED


def worst(shortfalls: Iterable[Shortfall], default: Why = Why.REFUSED) -> Why:
    """Give the worst of some reasons: a bug before a service, a service before a verdict."""
    order = list(Why)
    return max((each.why for each in shortfalls), key=order.index, default=default)


def reasons(failures: Shortfalls) -> dict[str, str]:
    """Give, by subject, why it could not be made, in words."""
    return {subject: shortfall.reason for subject, shortfall in failures.items()}


def causes(broken: Shortfalls) -> tuple[str, ...]:
    """Give what is to be mended first, of products that others need: they themselves, or what they were left for."""
    return tuple(dict.fromkeys(name for subject, each in broken.items() for name in each.behind or (subject,)))


def listed(failures: Shortfalls) -> str:
    """Give a line for each cause, once, and one that counts and names the products behind it.

    The matrix, as an artifact and in the report, has the reason of every single cell.
    """
    groups: dict[str, list[str]] = {}
    for subject, each in failures.items():
        if not failures.keys() & set(each.behind):
            groups.setdefault(each.reason.removeprefix(f"{subject}: "), []).append(subject)
    lines, told = [], set[str]()
    for reason, subjects in groups.items():
        behind = [name for name, each in failures.items() if name not in told and set(each.behind) & set(subjects)]
        told |= set(behind)
        lines.append(f"- {_named(subjects)}: {reason}")
        if behind:
            count = f"{len(behind)} {'product waits' if len(behind) == 1 else 'products wait'}"
            lines.append(f"  {count} for it: {_named(behind)}")
    return "\n".join(lines)


def _named(subjects: Sequence[str]) -> str:
    more = len(subjects) - _MOST_NAMED
    if more <= 1:
        return ", ".join(subjects)
    return f"{', '.join(subjects[:_MOST_NAMED])} and {more} more"


def failed(message: str, shortfalls: Iterable[Shortfall], error: LtsftError | None = None) -> State[Any]:
    """Give the state of a flow that could not do all: named by the worst that happened.

    Args:
        message: what could not be done, for people.
        shortfalls: what could not be done.
        error: raised where the flow is called as a function.
    """
    return Failed(name=worst(shortfalls), message=message, data=error)


def completed(message: str, *, has_refusals: bool = False, data: Any = None) -> State[Any]:
    """Give the state of a flow that did all; a gate's refusal is an outcome, and in its name."""
    return Completed(name=Why.REFUSED if has_refusals else "Completed", message=message, data=data)


def ends_in_words(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have a flow end as *Refused* or *Unavailable* where an error of ours goes up from its function.

    It does not begin where an order to stop was lost, and what such an order became is no end of it.

    Put under Prefect's decorator. Called as a function, the flow raises the error as before.
    """

    @functools.wraps(function)
    def told(*arguments: _P.args, **named: _P.kwargs) -> _R:
        with remembering_orders():
            stop_if_asked()
            try:
                return function(*arguments, **named)
            except Exception as error:
                stop_if_asked()  # it may be what an interruption became
                if not isinstance(error, LtsftError):
                    raise
                state: State[Any] = failed(str(error) or type(error).__name__, [Shortfall.of(error)], error)
                return cast(_R, state)

    # Prefect looks for the types of the parameters in the module of the function that it is given: this one.
    told.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return told


def in_rounds(items: Iterable[_T], act: Callable[[_T], Shortfall | None]) -> dict[_T, Shortfall]:
    """Do something with each item; what a service stopped is done again after a pause, with all such items.

    How often is `LTSFT_CRASHES`, and the first pause `LTSFT_RETRY_SECONDS`, as for runs that crash.

    Args:
        items: in their order.
        act: says why it could not be done, nothing if it was. A `ServiceError` that it raises is such a reason.

    Returns:
        By item, why it was not done in the last round.
    """
    settings = read_settings()
    left, found = list(items), dict[_T, Shortfall]()
    for number in range(settings.crashes):
        if number:
            pause = settings.retry_seconds * LONGER ** (number - 1)
            get_run_logger().warning("%d could not be done for a service; tried again in %.0f s", len(left), pause)
            time.sleep(pause)
        for item in left:
            stop_if_asked()
            found.pop(item, None)
            shortfall = _tried(act, item)
            stop_if_asked()  # before it is told as its failure
            if shortfall is not None:
                found[item] = shortfall
        left = [item for item in left if item in found and found[item].why is Why.UNAVAILABLE]
        if not left:
            break
    return found


def _tried(act: Callable[[_T], Shortfall | None], item: _T) -> Shortfall | None:
    try:
        return act(item)
    except (ServiceError, InterruptedTraining) as error:
        return Shortfall.of(error)
