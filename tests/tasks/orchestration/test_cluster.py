"""What the reconciler learns from a cluster, asked over HTTP."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest
from kubernetes_api import Cluster

from tasks.orchestration.cluster import delete_job, read_jobs

pytestmark = pytest.mark.integration
WHY = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def test_jobs_are_read_with_what_the_cluster_says_of_waiting_pods_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"prefect.io/flow-run-id": "r"}
    container = {"name": "prefect-job", "image": "x:1", "args": ["sleep", "600"]}
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": "job", "labels": labels, "annotations": {"ltsft.io/pending-timeout": "600s"}}
    with Cluster(tmp_path / "node", {"PATH": os.environ["PATH"]}, cwd=tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
        cluster.keep_pending = lambda pod: WHY
        url = f"{cluster.url}/apis/batch/v1/namespaces/ltsft/jobs"
        httpx.post(url, json={"metadata": metadata, "spec": {"backoffLimit": 0, "template": template}})
        end = time.monotonic() + 30
        while not cluster.objects("events") and time.monotonic() < end:
            time.sleep(0.05)
        waiting = read_jobs("ltsft")
        cluster.keep_pending = lambda pod: None
        while not cluster.running() and time.monotonic() < end:
            time.sleep(0.05)
        running = read_jobs("ltsft")
        delete_job("ltsft", "job")
        delete_job("ltsft", "gone already")
        while cluster.objects("jobs") and time.monotonic() < end:
            time.sleep(0.05)
        after = read_jobs("ltsft")

    assert [(j.name, j.flow_run, j.is_active, j.pending_timeout) for j in waiting] == [("job", "r", True, 600.0)]
    assert waiting[0].told == (f"FailedScheduling: {WHY}",)
    assert [(j.is_active, j.waiting_since, j.told) for j in running] == [(True, None, ())]
    assert after == []


def test_a_job_of_several_pods_waits_for_the_last_and_is_over_when_the_first_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"prefect.io/flow-run-id": "r"}
    script = f"test $JOB_COMPLETION_INDEX = 1 || while test ! -e {tmp_path}/done; do sleep 0.05; done"
    container = {"name": "prefect-job", "image": "x:1", "args": ["sh", "-c", script]}
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {"backoffLimit": 0, "template": template, "completionMode": "Indexed", "completions": 3, "parallelism": 3}
    spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    index = "batch.kubernetes.io/job-completion-index"
    with Cluster(tmp_path / "node", {"PATH": os.environ["PATH"]}, cwd=tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
        cluster.keep_pending = lambda pod: WHY if pod["metadata"]["labels"][index] == "2" else None
        url = f"{cluster.url}/apis/batch/v1/namespaces/ltsft/jobs"
        httpx.post(url, json={"metadata": {"name": "job", "labels": labels}, "spec": spec})
        end = time.monotonic() + 30
        while cluster.objects("jobs")[0]["status"].get("succeeded") != 1 and time.monotonic() < end:
            time.sleep(0.05)
        [waiting] = read_jobs("ltsft")
        (tmp_path / "done").touch()
        while "conditions" not in cluster.objects("jobs")[0]["status"] and time.monotonic() < end:
            time.sleep(0.05)
        [over] = read_jobs("ltsft")

    assert waiting.is_active, "another node is done, the first is not"
    assert waiting.waiting_since is not None
    assert waiting.told == (f"FailedScheduling: {WHY}",), "two run and one has no node"
    assert (over.is_active, over.waiting_since) == (False, None), "the first is done, and the others were ended"
