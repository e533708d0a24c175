"""The image does its work with nothing but what it says that it needs, and the stack does so by its schedules alone."""

from __future__ import annotations

import gzip
import time
import uuid
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from compose_stack import Stack, call, wait_until

pytestmark = [pytest.mark.image, pytest.mark.timeout(7200)]
LOCKED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
LOCKED += ["--network", "none", "--tmpfs", "/tmp"]
LARGEST = 1_900_000_000
CODE = "qac"
"""A language of the toy that its project does not have."""


def test_the_image_is_no_larger_than_it_says(engine: str, image: str) -> None:
    assert int(call(engine, "image", "inspect", "--format", "{{.Size}}", image)) <= LARGEST


def test_the_image_has_no_tool_that_it_does_not_need(engine: str, image: str) -> None:
    script = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    packages = call(engine, "run", "--rm", *LOCKED, image, "python", "-c", script).split()
    assert {"ltsft", "torch", "prefect", "mlflow"} <= set(packages)
    assert not {"pytest", "mypy", "ruff", "moto", "onnxruntime", "kubernetes-validate", "uv"} & set(packages)


def test_the_image_runs_the_demo_locked_down_and_without_a_network(engine: str, image: str) -> None:
    volume = f"ltsft-test-{uuid.uuid4().hex[:8]}"
    command = "id -u; ! touch /app/here 2> /dev/null; ltsft toy work/toy; ltsft run configs/toy.yaml --json"
    try:
        said = call(engine, "run", "--rm", *LOCKED, "--volume", f"{volume}:/app/work", image, "sh", "-ec", command)
    finally:
        call(engine, "volume", "rm", volume, check=False)
    assert said.splitlines()[0] == "10001"
    for language in ("qaa", "qab", "qae", "qaf", "qag", "qah"):
        assert f'"language": "{language}"' in said, said[-3000:]


def ask(stack: Stack, method: str, path: str, **more: Any) -> Any:
    """Ask Prefect's server."""
    user, _, password = stack.secret("prefect-client.env").partition("=")[2].partition(":")
    answer = httpx.request(method, f"{stack.url('PREFECT')}/api{path}", auth=(user, password), timeout=60, **more)
    answer.raise_for_status()
    return answer.json()


def runs_of(stack: Stack, deployment: str) -> list[dict[str, Any]]:
    """Runs of a deployment, or none while the server is away."""
    body = {"deployments": {"name": {"any_": ["toy"]}}, "flows": {"name": {"any_": [deployment]}}, "limit": 200}
    try:
        return list(ask(stack, "POST", "/flow_runs/filter", json=body))
    except httpx.HTTPError:
        return []


def mlflow(stack: Stack, path: str, **body: Any) -> dict[str, Any]:
    """Ask MLflow; nothing while it is away."""
    auth = ("ltsft", stack.secret("mlflow-password"))
    try:
        url = f"{stack.url('MLFLOW')}/api/2.0/mlflow/{path}"
        answer = httpx.post(url, json=body, auth=auth) if body else httpx.get(url, auth=auth)
        return dict(answer.json()) if answer.is_success else {}
    except httpx.HTTPError:
        return {}


def row(stack: Stack) -> bool:
    """Whether the language has a scored cell."""
    experiment = mlflow(stack, "experiments/get-by-name?experiment_name=toy").get("experiment", {}).get("experiment_id")
    if experiment is None:
        return False
    query = f"tags.`ltsft.subject` = 'cell pos {CODE}' and attributes.status = 'FINISHED'"
    return bool(mlflow(stack, "runs/search", experiment_ids=[experiment], filter=query).get("runs"))


def candidate(stack: Stack) -> bool:
    """Whether the language is offered for release."""
    return bool(mlflow(stack, f"registered-models/alias?name=toy.pos.{CODE}&alias=candidate"))


def drop(stack: Stack, folder: Path) -> None:
    """Put a text and its test data into the inbox, as a person does."""
    for name in (f"text/{CODE}.txt.gz", f"treebanks/{CODE}/test.conllu.gz"):
        stack("cp", f"worker-cpu:/cache/data/{name}", str(folder / name.replace("/", "-")))
    s3 = boto3.client(
        "s3", endpoint_url=stack.url("S3"), region_name="us-east-1",
        aws_access_key_id="ltsft", aws_secret_access_key=stack.secret("s3-password"),
    )  # fmt: skip
    text = gzip.decompress((folder / f"text-{CODE}.txt.gz").read_bytes())
    s3.put_object(Bucket="ltsft", Key=f"toy/inbox/{CODE}/news.txt", Body=text)
    s3.upload_file(str(folder / f"treebanks-{CODE}-test.conllu.gz"), "ltsft", f"toy/inbox/{CODE}/pos.test.conllu.gz")


def test_pages_open_and_what_they_show_asks_for_a_password(stack: Stack) -> None:
    prefect, tracking = stack.url("PREFECT"), stack.url("MLFLOW")
    auth = ("ltsft", stack.secret("mlflow-password"))
    assert 'id="app"' in httpx.get(prefect, follow_redirects=True, timeout=60).raise_for_status().text
    assert httpx.get(f"{prefect}/ui-settings", timeout=60).json()["api_url"] == "/api", "wherever it is opened"
    assert httpx.post(f"{prefect}/api/flows/filter", json={}, timeout=60).status_code == 401
    assert 'id="root"' in httpx.get(tracking, auth=auth, timeout=60).raise_for_status().text
    # What the page asks for, from where it was opened: another host than the one that MLflow knows itself by.
    search, body, origin = (
        f"{tracking}/ajax-api/2.0/mlflow/experiments/search",
        {"max_results": 9},
        {"Origin": tracking},
    )
    found = httpx.post(search, json=body, auth=auth, headers=origin, timeout=60).raise_for_status().json()
    assert "toy" in {experiment["name"] for experiment in found["experiments"]}
    assert httpx.post(search, json=body, headers=origin, timeout=60).status_code == 401


def test_a_text_becomes_a_row_by_the_schedule_alone_although_each_service_is_killed(
    stack: Stack, tmp_path: Path
) -> None:
    wait_until(lambda: [r for r in runs_of(stack, "watch-inbox") if r["state"]["type"] == "COMPLETED"], "a schedule")
    started = time.monotonic()
    drop(stack, tmp_path)

    running = wait_until(
        lambda: [r for r in runs_of(stack, "adapt-language") if r["state"]["type"] == "RUNNING"], "a training"
    )
    print(f"a training runs {time.monotonic() - started:.0f} s after the drop")
    for service in ("postgres", "mlflow", "s3", "prefect-server", "worker-gpu"):
        stack("kill", "--signal", "SIGKILL", service)
        time.sleep(10)
        stack("start", service)

    wait_until(lambda: row(stack), "the row", 3600)
    print(f"the row is there {time.monotonic() - started:.0f} s after the drop")
    wait_until(lambda: candidate(stack), "a candidate", 1200)
    print(f"the candidate is there {time.monotonic() - started:.0f} s after the drop")
    assert len(runs_of(stack, "onboard-language")) == 1
    assert all(run["auto_scheduled"] for run in runs_of(stack, "watch-inbox"))
    assert {run["id"] for run in running} <= {run["id"] for run in runs_of(stack, "adapt-language")}
    wait_until(
        lambda: all(r["state"]["type"] == "COMPLETED" for r in runs_of(stack, "onboard-language")), "its end", 600
    )


def test_what_was_made_ready_is_not_touched_by_the_next_start(stack: Stack) -> None:
    stack("up", "--detach", "bootstrap")
    wait_until(lambda: "exited" in stack("ps", "--all", "--format", "json", "bootstrap"), "bootstrap's end")
    assert "nothing to change" in stack("logs", "--no-color", "bootstrap")
