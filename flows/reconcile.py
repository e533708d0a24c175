"""Reconcile: compare Prefect's runs, the cluster's jobs and MLflow's runs, and mend where they contradict each other.

Reads all three, and signs of life in place of jobs where the pools start processes. A run shown as running without a
pod or a sign of life, or whose pod or process never starts, is marked as crashed and rescheduled (unless a live flow
waits for it and does so itself); a job without a live run is deleted; an MLflow run that nobody works on is closed as
killed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pydantic
from prefect import flow
from prefect.logging import get_run_logger

from ltsft.project import ProjectRef
from tasks.orchestration import apply, decide, ends_in_words, find_silent, has_cluster, read_jobs, read_runs
from tasks.settings import read_settings
from tasks.workspace import open_workspace


@flow(name="reconcile", flow_run_name="reconcile {project.file}", validate_parameters=True)
@ends_in_words
def reconcile(
    project: ProjectRef,
    namespace: str = "ltsft",
    patience_seconds: pydantic.NonNegativeFloat = 180.0,
    pending_timeout_seconds: pydantic.PositiveFloat = 1800.0,
    silence_seconds: pydantic.PositiveFloat = 120.0,
    watch_seconds: pydantic.PositiveFloat = 75.0,
) -> list[str]:
    """Compare once and mend.

    Args:
        project: whose MLflow runs are looked at.
        namespace: where the jobs are, if there is a Kubernetes pool.
        patience_seconds: a contradiction that is younger is left alone.
        pending_timeout_seconds: longest wait for a process, or for a node where jobs do not say their own.
        silence_seconds: a process that gave no sign of life for so long is watched.
        watch_seconds: for how long; more than two heartbeats.

    Returns:
        What was done, in words.
    """
    tracker = open_workspace(project).tracker
    open_runs = tracker.open_runs()
    jobs = read_jobs(namespace) if has_cluster() else None
    runs = read_runs(jobs, open_runs)
    silent = find_silent(runs, silence=timedelta(seconds=silence_seconds), watch_seconds=watch_seconds)
    actions = decide(
        runs,
        jobs or (),
        open_runs,
        now=datetime.now(UTC),
        patience=timedelta(seconds=patience_seconds),
        pending_timeout=timedelta(seconds=pending_timeout_seconds),
        silent=silent,
    )
    done = apply(actions, tracker, namespace=namespace, crashes=read_settings().crashes)
    for line in done:
        get_run_logger().warning(line)
    get_run_logger().info("%d contradictions were mended", len(done))
    return done
