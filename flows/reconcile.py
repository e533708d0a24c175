"""Reconcile: compare Prefect's runs, the cluster's jobs and MLflow's runs, and mend where they contradict each other.

Reads all three. A run shown as running without a pod, or whose pod never starts, is marked as crashed and rescheduled
(unless a live flow waits for it and does so itself); a job without a live run is deleted; an MLflow run that nobody
works on is closed as killed. Only useful where flows run in a cluster.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pydantic
from prefect import flow
from prefect.logging import get_run_logger

from ltsft.config import ProjectRef
from tasks.cluster import read_jobs
from tasks.reconciliation import apply, decide, read_runs
from tasks.settings import read_settings
from tasks.workspace import open_workspace


@flow(name="reconcile", flow_run_name="reconcile {project.file}", validate_parameters=True)
def reconcile(
    project: ProjectRef,
    namespace: str = "ltsft",
    patience_seconds: pydantic.NonNegativeFloat = 180.0,
    pending_timeout_seconds: pydantic.PositiveFloat = 1800.0,
) -> list[str]:
    """Compare once and mend.

    Args:
        project: whose MLflow runs are looked at.
        namespace: where the jobs are.
        patience_seconds: a contradiction that is younger is left alone.
        pending_timeout_seconds: longest wait for a node, for jobs that do not say their own.

    Returns:
        What was done, in words.
    """
    tracker = open_workspace(project).tracker
    open_runs = tracker.open_runs()
    jobs = read_jobs(namespace)
    actions = decide(
        read_runs(jobs, open_runs),
        jobs,
        open_runs,
        now=datetime.now(UTC),
        patience=timedelta(seconds=patience_seconds),
        pending_timeout=timedelta(seconds=pending_timeout_seconds),
    )
    done = apply(actions, tracker, namespace=namespace, crashes=read_settings().crashes)
    for line in done:
        get_run_logger().warning(line)
    get_run_logger().info("%d contradictions were mended", len(done))
    return done
