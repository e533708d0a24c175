"""Runs started as deployments: found again by key, rescheduled when they crash, given up after some crashes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.flow_engine import run_flow
from prefect.states import Completed, Crashed, Pending, Running, State

from ltsft.errors import StoredFileError, TrainingError, ValidationError
from tasks.orchestration.ends import Shortfall, Why, ends_in_words
from tasks.orchestration.launching import Launch, launch_all, refuse_if_crashed
from tasks.settings import read_settings

pytestmark = pytest.mark.integration
AWAY, REFUSED = -1, -2


@flow(name="launched")
@ends_in_words
def launched(number: int) -> int:
    """Ends as its number says: with a service that is away, a verdict, or well."""
    if number == AWAY:
        raise StoredFileError("MLflow could not open the run")
    if number == REFUSED:
        raise ValidationError("too little text")
    return number


@flow(name="launching")
def launch(launches: list[Launch], crashes: int) -> dict[str, Shortfall]:
    return launch_all(launches, crashes=crashes, poll_seconds=0.05)


class Worker(threading.Thread):
    """Ends runs as it is told, in turn; stands for worker and pods. A number has Prefect's engine run the flow."""

    def __init__(self, *ends: State[Any] | int) -> None:
        super().__init__(daemon=True)
        self.ends, self.seen = list(ends), []
        self.over = threading.Event()

    def run(self) -> None:
        with get_client(sync_client=True) as client:
            while not self.over.wait(0.05):
                for run in client.read_flow_runs():
                    if (
                        run.deployment_id is not None
                        and run.state is not None
                        and run.state.is_scheduled()
                        and self.ends
                    ):
                        self.seen.append(run.id)
                        self._end(client, run, self.ends.pop(0))

    def _end(self, client: Any, run: FlowRun, end: State[Any] | int) -> None:
        if isinstance(end, int):
            client.set_flow_run_state(run.id, Pending(), force=True)
            run_flow(launched, flow_run=client.read_flow_run(run.id), parameters={"number": end}, return_type="state")
            return
        for state in (Pending(), Running(), end):
            client.set_flow_run_state(run.id, state, force=True)


@pytest.fixture
def deployment(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[UUID]:
    monkeypatch.setenv("LTSFT_RETRY_SECONDS", "0.01")
    read_settings.cache_clear()
    with get_client(sync_client=True) as client:
        made = client.create_deployment(client.create_flow(launched), "launched", entrypoint="x:y", path=".")
        yield made
        client.delete_deployment(made)
    read_settings.cache_clear()


def work(launches: list[Launch], *ends: State[Any] | int, crashes: int = 3) -> tuple[dict[str, Shortfall], list[UUID]]:
    worker = Worker(*ends)
    worker.start()
    try:
        return launch(launches, crashes), worker.seen
    finally:
        worker.over.set()
        worker.join()


def one(key: str, subject: str = "a", **more: Any) -> Launch:
    return Launch("launched/launched", subject, key, {"number": 1}, **more)


def test_a_run_that_crashed_goes_on_as_the_same_run(deployment: UUID) -> None:
    failures, seen = work([one("k1")], Crashed(message="gone"), Crashed(message="gone"), Completed())

    assert failures == {}
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_after_some_crashes_it_has_failed_and_what_needs_it_is_not_tried(deployment: UUID) -> None:
    launches = [one("k2"), one("k3", "b", needs=("a",))]

    failures, seen = work(launches, Crashed(message="out of memory"), Crashed(message="out of memory"), crashes=2)

    told = "crashed 2 times, which is the most that is allowed; the last time: out of memory"
    assert failures == {
        "a": Shortfall(told, Why.FAILED),
        "b": Shortfall("not tried, because a could not be made", Why.FAILED),
    }
    assert len(seen) == 2


def test_two_that_want_the_same_key_at_once_wait_for_one_run(
    deployment: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[dict[str, Shortfall]] = []
    looking = threading.Barrier(3)

    def want() -> None:
        looking.wait(30)
        found.append(launch([one("k5")], 3))

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    looking.wait(30)
    end = time.monotonic() + 120
    while sum(message.startswith("a: flow run") for message in caplog.messages) < 2 and time.monotonic() < end:
        time.sleep(0.1)  # only once both have asked can the run end
    worker = Worker(Completed(), Completed())
    worker.start()
    for thread in threads:
        thread.join(60)
    worker.over.set()
    worker.join()

    assert found == [{}, {}]
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_flow_runs() if "key:k5" in run.tags]
    assert len(runs) == 1
    assert runs[0].state.type == StateType.COMPLETED


def test_a_service_that_was_away_is_no_verdict(deployment: UUID) -> None:
    failures, seen = work([one("k7")], AWAY, 1)

    assert failures == {}
    assert len(seen) == 2
    assert len(set(seen)) == 1


def test_a_service_that_stays_away_is_told_as_such(deployment: UUID) -> None:
    failures, seen = work([one("k8")], AWAY, AWAY, crashes=2)

    told = "tried 2 times, which is the most that is allowed; the last time: MLflow could not open the run"
    assert failures == {"a": Shortfall(told, Why.UNAVAILABLE)}
    assert len(seen) == 2


def test_a_verdict_is_told_and_not_tried_again(deployment: UUID) -> None:
    failures, seen = work([one("k6")], REFUSED)

    assert failures == {"a": Shortfall("too little text", Why.REFUSED)}
    assert len(seen) == 1


def test_a_run_that_reschedules_itself_gives_up_after_some_crashes(prefect_server: None) -> None:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(launched, parameters={"number": 1})
        for state in (Running(), Crashed(message="gone"), Running()):
            client.set_flow_run_state(run.id, state, force=True)
        refuse_if_crashed(str(run.id), crashes=2)
        for state in (Crashed(message="a node is gone"), Running()):
            client.set_flow_run_state(run.id, state, force=True)

        with pytest.raises(TrainingError, match=r"^crashed 2 times, .* the last time: a node is gone$"):
            refuse_if_crashed(str(run.id), crashes=2)
    refuse_if_crashed(None, crashes=1)
