"""What an analyst finds in MLflow: views with numbers, descriptions, data sets; and in a real browser."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.tracking.inputs import DataInput
from tasks.tracking.records import NewRun
from tasks.tracking.runs import RunHandle
from tasks.tracking.saved_views import VIEWS, desk_tags
from tasks.tracking.tracker import Tracker

pytestmark = pytest.mark.integration
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A record with two cells, a language SFT and a metric that is no number."""
    folder = tmp_path_factory.mktemp("desk")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", experiment="desk", artifact_location=str(folder / "artifacts"))
    for code, score in (("fo", 0.871), ("hsb", 0.654)):
        with open_run(tracker, "cell", code, f"cell pos {code}") as run:
            run.log_metrics({"score": score, "gain": 0.123, "interference.cosine": float("nan")})
    text = DataInput("fo text", "0123456789abcdef", ("text:/data/fo.txt",), "training")
    with open_run(tracker, "language", "fo", "language fo", inputs=[text]) as run:
        run.log_metrics({"sparsity.density": 0.08, "sparse.best_score": -2.5})
    return tracker


def open_run(tracker: Tracker, kind: str, code: str, subject: str, inputs: list[DataInput] | None = None) -> RunHandle:
    return tracker.open_run(NewRun(
        name=subject, kind=kind, subject=subject, key=subject, parts={}, tags={"ltsft.language": code},
        description=f"About **{subject}**.", inputs=inputs or ()))  # fmt: skip


def test_the_first_run_writes_every_view_and_the_second_writes_nothing(tracker: Tracker) -> None:
    tags = tracker.client.get_experiment(tracker.experiment_id).tags

    assert {f"mlflow.sharedViewState.{view.id}" for view in VIEWS} <= tags.keys()
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert all(view.id in tags["mlflow.note.content"] for view in VIEWS)
    assert desk_tags("desk", tracker.experiment_id, tags) == {}


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.id)
def test_a_view_asks_for_what_mlflow_can_find_and_sort(tracker: Tracker, view: object) -> None:
    _, value = view.tag()  # type: ignore[attr-defined]
    state = json.loads(json.loads(value)["state"])
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"

    assert len(value) <= 5000
    tracker.client.search_runs([tracker.experiment_id], state["searchFilter"], order_by=[order])


def test_a_description_that_a_person_wrote_stays(tracker: Tracker) -> None:
    there = {**tracker.client.get_experiment(tracker.experiment_id).tags, "mlflow.note.content": "our own words"}

    assert desk_tags("desk", tracker.experiment_id, there) == {}


def test_a_metric_that_is_not_finite_is_named_in_a_tag_and_not_logged(tracker: Tracker) -> None:
    record = tracker.find("cell pos fo")

    assert record is not None
    assert record.metrics == {"score": 0.871, "gain": 0.123}
    assert record.tags["ltsft.not_finite"] == "interference.cosine"


def test_the_data_of_a_run_stand_in_the_column_datasets(tracker: Tracker) -> None:
    record = tracker.find("language fo")
    assert record is not None
    (found,) = tracker.client.get_run(record.run_id).inputs.dataset_inputs

    assert (found.dataset.name, found.dataset.digest) == ("fo text", "0123456789abcdef")
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_a_description_outlives_a_failure_and_a_resumed_attempt(tracker: Tracker) -> None:
    def note() -> str:
        return str(tracker.client.get_run(run.run_id).data.tags.get("mlflow.note.content"))

    run = open_run(tracker, "cell", "gv", "cell pos gv")
    run.interrupt("the node went away")
    assert note().startswith("**Interrupted")
    assert note().endswith("About **cell pos gv**.")
    with open_run(tracker, "cell", "gv", "cell pos gv"):
        pass

    assert note() == "About **cell pos gv**."


@pytest.fixture(scope="module")
def pages(tracker: Tracker) -> Iterator[str]:
    """MLflow's own pages over the record; gives their address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracker.tracking_uri]
    server = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            if httpx.get(f"{address}/health").is_success:
                break
        except httpx.HTTPError:
            time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(timeout=60)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_link_opens_a_table_with_the_scores_in_a_browser(tracker: Tracker, pages: str, tmp_path: Path) -> None:
    link = tracker.ui_link().replace("http://127.0.0.1:5000", pages)

    shown = browse(link, tmp_path)

    assert "cell pos fo" in shown
    assert "0.871" in shown
    assert shown.index("0.871") < shown.index("0.654"), "sorted by score"
    assert "Traces" not in shown.partition("cell pos fo")[0].rpartition("Runs")[2]


def browse(link: str, folder: Path) -> str:
    """Open a page in headless Chromium; give its text once its scripts have run."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet,
        f"--user-data-dir={folder}/browser", "--window-size=1600,1000", "--virtual-time-budget=30000",
        "--dump-dom", link,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
