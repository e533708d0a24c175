"""What is wrong when Prefect, the cluster and MLflow contradict each other, and what is only young."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks.orchestration.cluster import Job
from tasks.orchestration.reconciliation import Actions, Run, decide
from tasks.tracking.records import OpenRun

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
OLD, YOUNG = NOW - timedelta(minutes=20), NOW - timedelta(seconds=20)


def look(*things: Run | Job | OpenRun, silent: dict[str, int] | None = None) -> Actions:
    return decide(
        [x for x in things if isinstance(x, Run)],
        [x for x in things if isinstance(x, Job)],
        [x for x in things if isinstance(x, OpenRun)],
        now=NOW,
        patience=timedelta(minutes=3),
        pending_timeout=timedelta(minutes=30),
        silent=silent,
    )


def job(*, active: bool = True, run: str = "r", **more: object) -> Job:
    return Job("job", run, active, OLD, **more)  # type: ignore[arg-type]


def test_where_all_agree_nothing_is_done() -> None:
    actions = look(Run("r", "fox", "RUNNING", OLD), job(), OpenRun("m", "language fo", "r"))

    assert actions == Actions({}, [], {}, {})


@pytest.mark.parametrize("jobs", [(), (job(active=False),)], ids=["no job", "a job that ended"])
def test_a_run_without_a_pod_has_crashed_and_its_mlflow_run_is_closed(jobs: tuple[Job, ...]) -> None:
    actions = look(Run("r", "fox", "RUNNING", OLD), *jobs, OpenRun("m", "language fo", "r"))

    assert actions.crash == {"r": "it is shown as running, but it has no pod in the cluster"}
    assert actions.reschedule == ["r"]
    assert actions.close == {"m": "its flow run crashed"}


def test_a_contradiction_that_is_young_is_left_alone() -> None:
    assert look(Run("r", "fox", "RUNNING", YOUNG)) == Actions({}, [], {}, {})
    assert look(Run("r", "fox", "COMPLETED", YOUNG), job()) == Actions({}, [], {}, {})


def test_a_pod_that_never_starts_is_told_in_the_words_of_the_cluster() -> None:
    told = ("FailedScheduling: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",)
    waiting = job(waiting_since=OLD, pending_timeout=600.0, told=told)

    actions = look(Run("r", "fox", "PENDING", OLD), waiting)

    assert actions.crash["r"].startswith("its pod did not start within 1200 s; the cluster says: FailedScheduling: 0/3")
    assert list(actions.delete) == ["job"]
    assert look(Run("r", "fox", "PENDING", OLD), job(waiting_since=OLD, told=told)) == Actions({}, [], {}, {})


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_job_whose_run_is_over_is_deleted_and_its_mlflow_run_closed(state: str) -> None:
    actions = look(Run("r", "fox", state, OLD), job(), OpenRun("m", "language fo", "r"))

    assert actions.delete == {"job": f"run fox is over ({state})"}
    assert actions.close == {"m": "flow run fox is over, and nobody closed this run"}
    assert (actions.crash, actions.reschedule) == ({}, [])


def test_a_job_of_a_run_that_prefect_does_not_know_is_deleted() -> None:
    assert look(job(run="gone")).delete == {"job": "Prefect does not know flow run gone"}


def test_a_run_that_crashed_is_rescheduled_by_whoever_waits_for_it() -> None:
    assert look(Run("r", "fox", "CRASHED", OLD)).reschedule == ["r"]
    assert look(Run("r", "fox", "CRASHED", OLD, has_waiting_parent=True)).reschedule == []


def test_an_mlflow_run_of_somebody_elses_machine_is_left_alone() -> None:
    assert look(OpenRun("m", "language fo", "")) == Actions({}, [], {}, {})


def test_a_run_in_a_process_is_dead_when_it_is_silent_and_not_because_it_has_no_pod() -> None:
    running = Run("r", "fox", "RUNNING", OLD, where="process", sign=OLD)

    assert look(running) == Actions({}, [], {}, {})
    actions = look(running, OpenRun("m", "language fo", "r"), silent={"r": 1200})
    assert actions.crash == {"r": "it is shown as running, but its process has given no sign of life for 1200 s"}
    assert (actions.reschedule, actions.close) == (["r"], {"m": "its flow run crashed"})


def test_a_run_that_no_process_starts_has_crashed_after_a_while() -> None:
    pending = Run("r", "fox", "PENDING", NOW - timedelta(minutes=31), where="process")

    assert look(pending).crash == {"r": "it was submitted, but no process has started it within 1860 s"}
    assert look(Run("r", "fox", "PENDING", OLD, where="process")) == Actions({}, [], {}, {})


def test_the_mlflow_run_of_a_cancelled_run_is_closed_once_its_process_is_silent() -> None:
    cancelled = Run("r", "fox", "CANCELLED", OLD, where="process", sign=OLD)

    assert look(cancelled, OpenRun("m", "language fo", "r")).close
    assert not look(replace(cancelled, sign=YOUNG), OpenRun("m", "language fo", "r")).close


def test_a_part_of_another_run_lives_as_long_as_that_one_and_is_not_rescheduled() -> None:
    part = Run("p", "adapt-language fo", "RUNNING", OLD, where="part")

    assert look(part) == Actions({}, [], {}, {}), "it needs no pod of its own"
    actions = look(replace(part, left_since=OLD), OpenRun("m", "language fo", "p"))
    assert actions.crash == {"p": "it is shown as running, but the run that it was a part of is over or began anew"}
    assert (actions.reschedule, actions.close) == ([], {"m": "its flow run crashed"})
    assert look(Run("h", "by hand", "RUNNING", OLD, where="elsewhere")) == Actions({}, [], {}, {})
