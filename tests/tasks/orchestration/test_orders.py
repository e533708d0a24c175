"""An order to stop is kept where its exception gets lost: in Prefect's engine, and in what a library catches."""

from __future__ import annotations

import contextlib
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from sigterm import Stopped

from tasks.orchestration.ends import Shortfall, completed, ends_in_words, in_rounds, shortfall_of
from tasks.orchestration.local_flows import run_locally
from tasks.orchestration.retries import task
from tasks.orchestration.stopping import is_asked_to_stop, remembering_orders, run_stoppable, stop_if_asked

pytestmark = pytest.mark.integration
BEGUN: list[str] = []
FAILED: dict[int, Shortfall] = {}


@task(name="begin", task_run_name="begin {number}")
def begin(number: int) -> None:
    BEGUN.append(f"begin {number}")


@task(name="end", task_run_name="end {number}")
def end(number: int) -> None:
    BEGUN.append(f"end {number}")


@flow(name="make-one")
@ends_in_words
def make_one(number: int, is_caught: bool) -> None:
    begin(number)
    if is_caught:
        with contextlib.suppress(KeyboardInterrupt):  # as around an import that may fail
            signal.raise_signal(signal.SIGINT)
    end(number)


@flow(name="make-three")
@ends_in_words
def make_three(is_caught: bool = False) -> State[Any]:
    FAILED.update(in_rounds(range(3), lambda n: shortfall_of(make_one(n, is_caught, return_state=True))))
    return completed("done")


@pytest.fixture(autouse=True)
def anew(prefect_server: None) -> Iterator[None]:
    BEGUN.clear()
    FAILED.clear()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
    yield
    signal.signal(signal.SIGINT, before)


def signal_when(is_there: Callable[[FrameType], bool], number: int = signal.SIGINT) -> None:
    """Send this process a signal at the first call of which something holds."""

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and is_there(frame):
            sys.setprofile(None)
            signal.raise_signal(number)

    sys.setprofile(look)


def starts_a_task(frame: FrameType) -> bool:
    """There an interruption becomes ``ValueError('Task run is not set')``."""
    return frame.f_code.co_name == "_create_task_run_locally"


def joins_a_heartbeat(frame: FrameType) -> bool:
    """There one is dropped: the run is over."""
    return frame.f_code.co_name == "join" and frame.f_back is not None and "heartbeats" in frame.f_back.f_code.co_name


@pytest.mark.parametrize(
    ("moment", "begun"),
    [(starts_a_task, []), (joins_a_heartbeat, ["begin 0", "end 0"]), (None, ["begin 0"])],
    ids=["start of a task", "end of a flow", "caught by a library"],
)
def test_an_order_that_got_lost_stops_the_run_before_its_next_task_and_nothing_is_told_as_failed(
    moment: Callable[[FrameType], bool] | None, begun: list[str]
) -> None:
    if moment is not None:
        signal_when(moment)
    with pytest.raises(KeyboardInterrupt, match="what is done is kept, and the same command goes on from there"):
        run_locally(make_three, is_caught=moment is None)

    assert begun == BEGUN
    assert not FAILED


class Held:
    """Something that a weak reference points to."""


def test_an_order_that_came_in_the_callback_of_a_weak_reference_is_kept_without_a_traceback(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # in place of pytest's, as in the command
    held = Held()
    reference = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
    with remembering_orders():
        del held
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()

    assert "Traceback" not in capfd.readouterr().err


def test_sigterm_is_kept_as_well(sigterm_raises: None) -> None:
    signal_when(starts_a_task, signal.SIGTERM)
    with pytest.raises(Stopped):
        make_three()

    assert not BEGUN
    assert not FAILED


def test_a_training_looks_for_an_order_that_got_lost_and_afterwards_it_is_forgotten() -> None:
    def train(should_stop: Callable[[], bool]) -> str:
        return "stopped" if should_stop() else "went on"

    with remembering_orders():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert is_asked_to_stop()
        with pytest.raises(KeyboardInterrupt):
            run_stoppable(train)

    assert not is_asked_to_stop()
    assert run_stoppable(train) == "went on"
