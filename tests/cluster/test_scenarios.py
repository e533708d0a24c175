"""The bad days of a cluster, with real services: nothing is lost, nothing is made twice, and everything is told.

`make test-cluster` runs them; each takes minutes on two cores, most of it the start of pods.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import answers, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def change(project: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    settings = yaml.safe_load(project.read_text())
    alter(settings)
    project.write_text(yaml.safe_dump(settings, sort_keys=False))


def lengthen(project: Path, kind: str, *, full: int = 12, sparse: int = 12) -> None:
    """Give the phases of a recipe so many steps."""

    def alter(settings: dict[str, Any]) -> None:
        recipe = dict(settings["recipes"][kind])
        for phase, steps in (("full", full), ("sparse", sparse)):
            recipe[phase] = {"max_steps": steps, "min_steps": steps, "learning_rate": 1e-3}
        settings["recipes"][kind] = recipe

    change(project, alter)


def add_language(project: Path, code: str) -> None:
    def alter(settings: dict[str, Any]) -> None:
        settings["languages"][code] = {"name": f"Language {code}", "script": "Latn", "text": f"text:{code}.txt"}
        settings["target_tasks"]["pos"]["test"][code] = f"conllu:{code}-test.conllu"

    change(project, alter)


def reference(project: Path) -> dict[str, Any]:
    return {"file": str(project)}


def assert_nothing_is_left(cluster: Any, project: Path) -> None:
    """No run that hangs, no pod, no checkpoint, and one MLflow run for each key."""
    assert cluster.runs(project, "RUNNING", "PENDING", "SCHEDULED") == []
    wait_until(lambda: not cluster.cluster.running(), "the end of all pods", 60)
    keys = Counter(run.data.tags["ltsft.key"] for run in cluster.mlflow_runs(project) if "ltsft.key" in run.data.tags)
    assert set(keys.values()) == {1}
    assert not list(cluster.bucket(project).entries("checkpoints"))


def sft_of(cluster: Any, project: Path, subject: str, folder: Path) -> bytes:
    """The tensors of an SFT as MLflow's artifacts in S3 have them."""
    from tasks.storage import Bucket

    run = next(r for r in cluster.mlflow_runs(project) if r.data.tags.get("ltsft.subject") == subject)
    assert run.info.artifact_uri.startswith("s3://"), "artifacts do not go by way of MLflow"
    Bucket(run.info.artifact_uri).download("sft/sft.safetensors", folder / "sft.safetensors")
    return (folder / "sft.safetensors").read_bytes()


def assert_as_undisturbed(cluster: Any, project: Path, folder: Path, **recipe: int) -> None:
    """The SFTs are, bit for bit, what the project gives in a place of its own where nothing happens."""
    subjects = ("language aa", "task pos aa seed 1")
    disturbed = [sft_of(cluster, project, subject, folder) for subject in subjects]
    change(project, lambda s: s.update(name=f"{s['name']}-u", store={"folder": str(folder / "undisturbed")}))
    change(project, lambda s: s["recipes"].update(language={**s["recipes"]["language"], **recipe}))
    here = {"LTSFT_TRAININGS": "here", "LTSFT_BUCKET": "s3://ltsft/u", "LTSFT_ARTIFACT_LOCATION": "s3://ltsft/u"}
    done = cluster.ltsft("run", str(project), **here)
    assert done.returncode == 0, done.stderr[-2000:]
    undisturbed = [sft_of(cluster, project, subject, folder) for subject in subjects]
    assert [a == b for a, b in zip(disturbed, undisturbed, strict=True)] == [True, True], subjects


def attempts(cluster: Any, project: Path) -> dict[str, str]:
    """How often each SFT was started."""
    found = {r.data.tags["ltsft.subject"]: r.data.tags for r in cluster.mlflow_runs(project)}
    return {s: tags["ltsft.attempts"] for s, tags in found.items() if tags.get("ltsft.kind") in ("language", "task")}


def node_of(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def running(cluster: Any) -> list[str]:
    return [pod["metadata"]["name"] for pod in cluster.cluster.running()]


def points(cluster: Any, project: Path, metric: str) -> list[tuple[str, int]]:
    """Runs of SFTs and steps at which a metric was logged."""
    client = cluster.tracker(project).client
    runs = [r for r in cluster.mlflow_runs(project) if r.data.tags.get("ltsft.kind") in ("language", "task")]
    return [
        (run.info.run_id, point.step) for run in runs for point in client.get_metric_history(run.info.run_id, metric)
    ]


def test_an_evicted_and_a_killed_training_end_as_if_nothing_had_happened(
    cluster: Any, project: Path, tmp_path: Path
) -> None:
    lengthen(project, "language", full=500)
    lengthen(project, "pos", sparse=500)
    making = tmp_path / "store" / "making"
    cluster.cluster.on_start = lambda pod: shutil.rmtree(making, ignore_errors=True)  # each pod finds an empty disk
    run = cluster.run("retrain", project=reference(project))

    wait_until(lambda: cluster.checkpoints(project, "0-full/checkpoint-"), "a checkpoint of the full phase")
    cluster.cluster.evict(cluster.pods_of("adapt-language", project)[0])
    wait_until(lambda: cluster.checkpoints(project, "0-sparse/checkpoint-"), "a checkpoint of the sparse phase")
    newest = cluster.checkpoints(project, "0-sparse/checkpoint-")[-1]
    cluster.cluster.kill(cluster.pods_of("adapt-task", project)[0])
    state = cluster.finished(run)

    assert state["type"] == "COMPLETED", state["message"]
    assert len(cluster.logs(project, text="asked to stop; saved the full phase at step")) == 1
    resumed = cluster.logs(project, text="of an earlier attempt")
    assert len(resumed) == 2
    assert int(resumed[1].split("checkpoint ")[1].split()[0]) >= int(Path(newest).stem), (
        "no more than an interval is lost"
    )
    assert_nothing_is_left(cluster, project)
    assert attempts(cluster, project) == {"language aa": "2", "task pos aa seed 1": "2"}
    assert_as_undisturbed(cluster, project, tmp_path)


def test_a_training_by_two_nodes_survives_the_loss_and_the_eviction_of_the_second(
    cluster: Any, project: Path, tmp_path: Path
) -> None:
    lengthen(project, "language", full=400, sparse=400)
    change(project, lambda settings: settings["recipes"]["language"].update(nodes=2))
    making = tmp_path / "store" / "making"
    cluster.cluster.on_start = lambda pod: node_of(pod) == 0 and shutil.rmtree(making, ignore_errors=True)
    run = cluster.run("retrain", project=reference(project))

    wait_until(lambda: cluster.checkpoints(project, "0-full/checkpoint-"), "a checkpoint of the full phase")
    first, second = sorted(cluster.pods_of("adapt-language", project), key=node_of)
    cluster.cluster.vanish(second)
    wait_until(lambda: first["metadata"]["name"] not in running(cluster), "the end of the first node", 60)
    wait_until(lambda: cluster.checkpoints(project, "0-sparse/checkpoint-"), "a checkpoint of the sparse phase")
    cluster.cluster.evict(max(cluster.pods_of("adapt-language", project), key=node_of))
    state = cluster.finished(run)

    assert state["type"] == "COMPLETED", state["message"]
    assert attempts(cluster, project) == {"language aa": "3", "task pos aa seed 1": "1"}
    training = next(r for r in cluster.runs(project) if r["name"] == "adapt-language aa")
    ends = [state for state in cluster.states(training["id"]) if state in ENDS]
    # The loss counts as a crash only if the observer is quicker than the first node, which is asked to stop, too.
    assert ends in (["CRASHED", "COMPLETED"], ["COMPLETED"]), "the eviction is no crash"
    assert len(cluster.logs(project, text="of an earlier attempt")) == 2
    assert_nothing_is_left(cluster, project)
    assert_as_undisturbed(cluster, project, tmp_path, nodes=1, processes=2)


def test_a_training_that_runs_out_of_memory_three_times_fails_and_the_rest_completes(
    cluster: Any, project: Path
) -> None:
    add_language(project, "bb")
    run = cluster.run("retrain", project=reference(project))
    killed = 0

    def kill_and_look() -> Any:
        nonlocal killed
        for pod in cluster.pods_of("adapt-language", project, language="bb"):
            cluster.cluster.kill_out_of_memory(pod)
            killed += 1
            wait_until(lambda name=pod["metadata"]["name"]: name not in running(cluster), "the end of the pod")
        return (state := cluster.state(run))["type"] in ENDS and state

    state = wait_until(kill_and_look, "the end of retrain", 400)

    assert killed == 3
    assert state["type"] == "FAILED"
    assert "- language bb: crashed 3 times, which is the most that is allowed; the last time:" in state["message"]
    assert "OOMKilled" in state["message"]
    finished = {r.data.tags["ltsft.subject"] for r in cluster.mlflow_runs(project) if r.info.status == "FINISHED"}
    assert finished >= {"language aa", "task pos aa seed 1", "cell pos aa", "matrix"}
    assert "cell pos bb" not in finished
    assert_nothing_is_left(cluster, project)


def test_a_pod_that_never_starts_is_told_with_what_the_cluster_says(cluster: Any, project: Path) -> None:
    why = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    cluster.cluster.keep_pending = lambda pod: (
        why if pod["metadata"]["labels"]["prefect.io/flow-name"] == "adapt-language" else None
    )
    cluster.bootstrap(project, "--job-variable=pending_timeout_seconds=2")
    run = cluster.run("adapt-language", project=reference(project), language="aa")
    wait_until(lambda: cluster.cluster.objects("events"), "the event of the scheduler")
    time.sleep(3)

    reconciled = cluster.finished(cluster.run("reconcile", project=reference(project)))

    assert reconciled["type"] == "COMPLETED", reconciled["message"]
    states = cluster.ask("GET", "/flow_run_states/", params={"flow_run_id": run})
    crashed = next(state for state in states if state["type"] == "CRASHED")
    assert f"FailedScheduling: {why}" in crashed["message"]
    cluster.cluster.keep_pending = lambda pod: None
    assert cluster.finished(run)["type"] == "COMPLETED", "it was rescheduled, and now there is a node"
    cluster.bootstrap(project)
    assert_nothing_is_left(cluster, project)


def test_services_that_come_and_go_cost_time_and_nothing_else(cluster: Any, project: Path, tmp_path: Path) -> None:
    lengthen(project, "language", full=500)
    cuts = iter([True] * 3)

    def bad_s3(number: int, method: str, path: str) -> str | None:
        if number % 3 == 0:
            return "503"
        return "cut" if method == "GET" and "safetensors" in path and next(cuts, False) else None

    cluster.s3.fault = bad_s3
    run = cluster.run("retrain", project=reference(project))
    wait_until(lambda: cluster.checkpoints(project, "0-full/checkpoint-"), "a checkpoint")
    for name in ("ltsft-gpu", "ltsft-cpu", "prefect"):
        cluster.processes[name].kill()
    away_until = time.monotonic() + 120
    cluster.mlflow.fault = lambda number, method, path: "away" if time.monotonic() < away_until else None
    time.sleep(5)
    for name in ("prefect", "ltsft-cpu", "ltsft-gpu"):
        cluster.processes[name].start()
    cluster.cluster.drop_watches()
    cluster.cluster.forget()
    wait_until(lambda: answers(f"{cluster.prefect_url}/health"), "Prefect's server")

    state = cluster.finished(run, 480)

    assert state["type"] == "COMPLETED", state["message"]
    assert {fault for _, _, fault in cluster.s3.requests} >= {"503", "cut"}
    assert "away" in {fault for _, _, fault in cluster.mlflow.requests}
    logged = points(cluster, project, "full.loss")
    assert len(logged) == 50 + 12, "the points that MLflow could not take at first were sent later"
    assert len(logged) == len(set(logged)), "nothing is logged twice"
    assert attempts(cluster, project) == {"language aa": "1", "task pos aa seed 1": "1"}, "nothing was done twice"
    assert_nothing_is_left(cluster, project)
    cluster.s3.fault = lambda number, method, path: None
    assert_as_undisturbed(cluster, project, tmp_path)


def test_two_retrains_at_once_train_each_key_once(cluster: Any, project: Path) -> None:
    runs = [cluster.run("retrain", project=reference(project)) for _ in range(2)]

    states = [cluster.finished(run) for run in runs]

    assert [state["type"] for state in states] == ["COMPLETED", "COMPLETED"], states
    trained = [r["name"] for r in cluster.runs(project) if r["name"].startswith(("adapt-language", "adapt-task"))]
    assert sorted(trained) == ["adapt-language aa", "adapt-task pos aa seed 1"]
    assert attempts(cluster, project) == {"language aa": "1", "task pos aa seed 1": "1"}
    assert_nothing_is_left(cluster, project)


def test_a_text_in_the_inbox_is_noticed_once_and_becomes_a_row_of_the_matrix(cluster: Any, project: Path) -> None:
    done = cluster.ltsft("run", str(project), LTSFT_TRAININGS="here")
    assert done.returncode == 0, done.stderr[-2000:]
    bucket, data = cluster.bucket(project), project.parent / "data"
    bucket.upload(data / "cc.txt", "inbox/cc/news.txt")
    bucket.upload(data / "cc-test.conllu", "inbox/cc/pos.test.conllu")

    watching = [cluster.run("watch-inbox", project=reference(project), quiet_seconds=0) for _ in range(2)]
    for run in watching:
        cluster.finished(run)
    assert cluster.finished(cluster.run("watch-inbox", project=reference(project), quiet_seconds=0))["type"] == ENDS[0]
    flow = cluster.ask("GET", "/flows/name/onboard-language")["id"]

    def onboarding() -> list[Any]:
        return [run for run in cluster.runs(project) if run["flow_id"] == flow]

    state = cluster.finished(wait_until(onboarding, "onboarding")[0]["id"])

    assert state["type"] == "COMPLETED", state["message"]
    assert len(onboarding()) == 1
    assert "- pos cc: version 1 is a candidate, score " in state["message"]
    released = f"{yaml.safe_load(project.read_text())['name']}.pos.cc"
    aliases = cluster.tracker(project).client.get_registered_model(released).aliases
    assert aliases == {"candidate": "1"}, "it is offered, and what is live is as it was"
    made = {r.info.run_id: r.data.tags["ltsft.subject"] for r in cluster.mlflow_runs(project)
            if r.info.status == "FINISHED"}  # fmt: skip
    assert set(made.values()) >= {"language cc", "cell pos aa", "cell pos cc"}
    page = cluster.ltsft("run", str(project), "--json", LTSFT_TRAININGS="here")  # only reads: all is there already
    assert '"language": "cc"' in page.stdout
    assert {r.info.run_id for r in cluster.mlflow_runs(project)} == set(made)
    assert_nothing_is_left(cluster, project)


def test_bootstrap_twice_changes_nothing_the_second_time(cluster: Any, project: Path) -> None:
    assert cluster.bootstrap(project) == ["nothing to change"]
    change(project, lambda settings: settings.update(name=f"{settings['name']}-new"))

    asked = cluster.bootstrap(project, "--dry-run", "--pool-limit=ltsft-gpu=7")
    assert cluster.bootstrap(project, "--dry-run", "--pool-limit=ltsft-gpu=7") == asked, "asking changes nothing"
    done = cluster.bootstrap(project, "--pool-limit=ltsft-gpu=7")

    assert done[:-1] == asked[:-1]
    assert done[0] == "update work pool ltsft-gpu (concurrency limit None -> 7)"
    assert cluster.bootstrap(project, "--pool-limit=ltsft-gpu=7") == ["nothing to change"]
