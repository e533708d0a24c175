"""A release taken elsewhere: S3, the hub, `mlflow models serve`, and a server while the registry is away."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hub_api import TOKEN, Hub, serving
from transformers import AutoModelForTokenClassification
from typer.testing import CliRunner

from ltsft.cli.main import app
from ltsft.project.project import ProjectRef
from ltsft.release.release import Slot
from tasks.workspace.workspace import Workspace, open_workspace

pytestmark = pytest.mark.integration
SLOT = Slot("bb", "pos")


@pytest.fixture(scope="module")
def released(
    prefect_server: None, finished_project_in: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of the finished project with one release; the canary was not asked."""
    import flows.promote as promotion
    from ltsft.release.verdicts import Canary

    file = finished_project_in(tmp_path_factory.mktemp("released") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promotion, "ask_canary", lambda *_: Canary(True, 0.1, "a stand-in"))
        ref = ProjectRef(file=str(file))
        state = promotion.promote(ref, language="bb", target_task="pos", return_state=True)
    assert state.is_completed(), state.message
    return file


@pytest.fixture(scope="module")
def workspace(released: Path) -> Workspace:
    return open_workspace(ProjectRef(file=str(released)), needs_data=False)


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def ltsft(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from ltsft.cli import app; app()", *arguments]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a command in the background; gives its process and the lines that it has written so far."""
    process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait(30)
        reader.join(30)


def until(found: Callable[[], Any], process: subprocess.Popen[str], lines: list[str], *, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None, "".join(lines)
        assert time.monotonic() < end, "".join(lines)
        time.sleep(0.1)
    return value


def test_an_export_to_s3_arrives_whole_and_loads_with_the_auto_classes(
    released: Path, bucket: Any, tmp_path: Path
) -> None:
    from tasks.storage import Bucket

    command = ["export", "bb", "pos", "--to", "s3://ltsft-tests/models/bb-pos", "--project", str(released)]
    done = CliRunner().invoke(app, command)

    assert done.exit_code == 0, done.output
    assert "pos bb version 1 to s3://ltsft-tests/models/bb-pos" in done.stdout
    there = Bucket("s3://ltsft-tests/models/bb-pos")
    names = {entry.name for entry in there.entries()}
    assert {"model.safetensors", "config.json", "README.md", "composition.json", "tokenizer.json"} <= names
    for name in names:
        there.download(name, tmp_path / name)
    assert AutoModelForTokenClassification.from_pretrained(tmp_path).config.id2label[0] == "NOUN"


def test_a_composition_goes_to_the_hub_with_a_token_that_nobody_sees(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
    with serving() as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)  # as HF_ENDPOINT does
        command = ["export", "bb", "pos", "--to", "hub:team/bb-pos", "--project", str(released)]
        done = CliRunner().invoke(app, command)

        assert done.exit_code == 0, done.output
        assert "pos bb version 1 to https://huggingface.co/team/bb-pos/commit/1" in done.stdout
        assert TOKEN not in done.output + caplog.text
        repository = Hub.repositories["team/bb-pos"]
    assert repository["visibility"] == "private"
    assert all(TOKEN.encode() not in content for content in repository["files"].values())
    for name, content in repository["files"].items():
        (tmp_path / name).write_bytes(content)
    assert AutoModelForTokenClassification.from_pretrained(tmp_path).config.id2label[0] == "NOUN"


def test_a_server_starts_from_a_bundle_while_the_registrys_port_is_closed_and_drains_on_sigterm(
    released: Path, workspace: Workspace, tmp_path: Path
) -> None:
    bundle = str(tmp_path / "bundle")
    assert CliRunner().invoke(app, ["bundle", bundle, "--project", str(released)]).exit_code == 0
    closed = f"http://127.0.0.1:{free_port()}"
    env = environment(MLFLOW_TRACKING_URI=closed, LTSFT_SERVE_DRAIN_SECONDS="1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    command = ltsft("serve", "--project", str(released), "--bundle", bundle, "--port", "0")

    with running(command, env) as (process, lines):
        found = until(lambda: re.search(r"answering on (http://\S+) \(1 releases\)", "".join(lines)), process, lines)
        with httpx.Client(base_url=found[1], timeout=60) as client:
            answer = client.post("/v1/pos/bb", json={"text": "bako dedas ."})
            assert answer.status_code == 200, answer.text
            assert (answer.json()["version"], len(answer.json()["results"][0]["words"])) == (1, 3)
            assert client.get("/readyz").status_code == 200
            process.send_signal(signal.SIGTERM)
            until(lambda: client.get("/readyz").status_code == 503, process, lines)
            assert client.post("/v1/pos/bb", json={"text": "bako"}).status_code == 200, "it drains, and still answers"
        assert process.wait(60) == 0, "".join(lines)
    assert "the registry is away" in "".join(lines)
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_mlflow_models_serve_answers_with_nothing_of_ours_on_the_callers_side(workspace: Workspace) -> None:
    from tasks.releases.registry import Registry

    version = Registry(workspace.tracker, workspace.project.name).version(SLOT, 1)
    port = str(free_port())
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{version.name}@champion"]
    command += ["--env-manager", "local", "--port", port, "--host", "127.0.0.1"]
    bin_folder = str(Path(sys.executable).parent)
    env = environment(
        MLFLOW_TRACKING_URI=workspace.tracker.tracking_uri, PATH=f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    )

    with running(command, env) as (process, lines), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def is_up() -> bool:
            try:
                return client.get("/ping").status_code == 200
            except httpx.TransportError:
                return False

        until(is_up, process, lines)
        answer = client.post("/invocations", json={"dataframe_records": [{"text": "bako dedas ."}]}, timeout=60)
        assert answer.status_code == 200, answer.text
        [row] = answer.json()["predictions"]
        assert (row["words"], len(row["labels"]), len(row["scores"])) == (["bako", "dedas", "."], 3, 3)
        wrong = client.post("/invocations", json={"dataframe_records": [{"question": "what?"}]}, timeout=60)
        assert wrong.status_code == 400, wrong.text
        assert "a row needs text or words" in wrong.text
