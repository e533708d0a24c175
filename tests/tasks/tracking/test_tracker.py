"""The record in MLflow, on a real SQLite store."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from mlflow.experiments import commands as experiments

from ltsft.canonical import canonical_json
from ltsft.errors import ServiceError, StoredFileError, TrainingError, ValidationError
from tasks.quiet import quiet_services
from tasks.tracking.records import Child, NewRun, flatten_params, git_tags
from tasks.tracking.runs import RunHandle
from tasks.tracking.tracker import Tracker

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, created once: that takes seconds."""
    quiet_services()
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(f"sqlite:///{folder}/mlflow.db", experiment="other")
    return folder / "mlflow.db"


@pytest.fixture
def tracker(empty_store: Path, tmp_path: Path) -> Tracker:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tracker_of(tmp_path)


def tracker_of(folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{folder}/mlflow.db", experiment="toy", artifact_location=str(folder / "artifacts"))


def open_fo(tracker: Tracker, key: str = "k1", **more: Any) -> RunHandle:
    about = "language fo"
    arguments: dict[str, Any] = {"name": about, "kind": "language", "subject": about, "key": key, "parts": {"seed": 1}}
    return tracker.open_run(NewRun(**{**arguments, **more}))


def points(tracker: Tracker, run: RunHandle, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(run.run_id, name)]


def run_child(code: str, *arguments: object, wait: bool = True) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    if wait:
        assert child.wait(timeout=120) == 0
    return child


def test_a_finished_run_is_found_by_its_key_with_all_that_was_logged(tracker: Tracker) -> None:
    with open_fo(tracker, params={"full": {"epochs": 1.5}, "seed": 3}, tags={"ltsft.base": "mini@abc"}) as run:
        assert tracker.find("k1") is None
        run.log_metrics({"density": 0.08, "density.layer.0": 0.1, "density.group.attention.self.query.weight": 0.2})
    record = tracker.find("k1")
    assert record is not None
    assert (record.key, record.kind, record.subject) == ("k1", "language", "language fo")
    assert record.parts == {"seed": 1}
    assert record.metrics["density.group.attention.self.query.weight"] == pytest.approx(0.2)
    assert record.params == {"full.epochs": "1.5", "seed": "3"}
    assert record.tags["ltsft.base"] == "mini@abc"
    assert record.end >= record.start
    assert tracker.find("k2") is None


def test_parts_longer_than_a_tag_come_back_whole(tracker: Tracker) -> None:
    parts = {"text": [{"location": f"text/{i}.txt", "sha256": "f" * 64} for i in range(200)], "name": "føroyskt"}
    open_fo(tracker, parts=parts).finish()
    record = tracker.find("k1")
    assert len(canonical_json(parts)) > 16_000
    assert record is not None
    assert record.parts == parts


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": Path("x")}) == canonical_json({"a": Path("x"), "b": 1}) == '{"a":"x","b":1}'


def test_params_are_flat_and_long_ones_say_that_they_are_cut() -> None:
    flat = flatten_params({"full": {"l1": 0.0, "freeze": ["a"]}, "size": None, "long": "x" * 9000})
    assert {k: flat[k] for k in ("full.l1", "full.freeze", "size")} == {
        "full.l1": "0.0",
        "full.freeze": '["a"]',
        "size": "none",
    }
    assert len(flat["long"]) <= 6000
    assert flat["long"].endswith("(cut)")


def test_a_run_that_was_killed_is_continued_and_not_doubled(tracker: Tracker, tmp_path: Path) -> None:
    code = """
import sys, time
from tasks.quiet import quiet_services; quiet_services()
from tasks.tracking.records import NewRun
from tasks.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], experiment="toy")
about = "language fo"
run = tracker.open_run(NewRun(name=about, kind="language", subject=about, key="k1", parts={}, params={"a": 1}))
for step in (10, 20, 30):
    run.log_metrics({"full.loss": 1 / step}, step)
print(run.run_id, flush=True)
time.sleep(600)
"""
    child = run_child(code, tracker.tracking_uri, wait=False)
    assert child.stdout is not None
    killed_run = child.stdout.readline().strip()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert tracker.records() == []

    with open_fo(tracker, params={"a": 2, "b": 3}) as run:
        assert run.is_resumed
        assert run.run_id == killed_run
        for step in (20, 30, 40):  # from the checkpoint at step 10
            run.log_metrics({"full.loss": 1 / step, "full.held_out": 2.0}, step)
    assert points(tracker, run, "full.loss") == [(10, 0.1), (20, 0.05), (30, 1 / 30), (40, 0.025)]
    assert points(tracker, run, "full.held_out") == [(20, 2.0), (30, 2.0), (40, 2.0)]
    (record,) = tracker.records()
    assert record.tags["ltsft.attempts"] == "2"
    assert record.params == {"a": "1", "b": "3"}


def test_a_result_logged_again_replaces_the_last(tracker: Tracker) -> None:
    with open_fo(tracker) as run:
        run.log_metrics({"score": 0.5})
        run.log_metrics({"score": 0.5})
    first = tracker.find("k1")
    assert first is not None
    assert first.metrics == {"score": 0.5}


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt(), ServiceError("S3 is away")])
def test_work_that_is_cut_off_is_resumed(tracker: Tracker, error: BaseException) -> None:
    with pytest.raises(type(error)), open_fo(tracker) as run:
        raise error
    assert tracker.client.get_run(run.run_id).info.status == "KILLED"
    assert type(error).__name__ in tracker.client.get_run(run.run_id).data.tags["mlflow.note.content"]
    with open_fo(tracker) as again:
        assert again.run_id == run.run_id
    record = tracker.find("k1")
    assert record is not None
    assert "mlflow.note.content" not in record.tags
    assert tracker.latest_failed() == {}


def test_an_error_after_the_end_does_not_take_the_product_away(tracker: Tracker) -> None:
    def store() -> None:
        with open_fo(tracker) as run:
            run.finish()
            raise OSError("folder is busy")

    with pytest.raises(OSError, match="busy"):
        store()
    assert tracker.find("k1") is not None


def test_a_verdict_ends_the_run_and_the_next_attempt_is_new(tracker: Tracker) -> None:
    with pytest.raises(TrainingError), open_fo(tracker) as run:
        raise TrainingError("loss is not finite at step 7")
    with open_fo(tracker) as again:
        assert again.run_id != run.run_id


def test_the_newest_attempt_decides_whether_a_subject_failed(tracker: Tracker) -> None:
    open_fo(tracker, key="old").finish()
    with pytest.raises(ValidationError), open_fo(tracker, key="new"):
        raise ValidationError("fo: share of letters in Latn is 0.12")
    open_fo(tracker, key="mt1", subject="language mt").fail("bad")
    open_fo(tracker, key="mt2", subject="language mt").finish()
    failed = tracker.latest_failed()
    assert list(failed) == ["language fo"]
    assert failed["language fo"].key == "new"
    assert failed["language fo"].reason == "fo: share of letters in Latn is 0.12"
    assert failed["language fo"].error_type == "ValidationError"


def test_records_are_all_products_newest_first_over_several_pages(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.tracking.tracker._PAGE", 2)
    for i in range(5):
        open_fo(tracker, key=f"k{i}", kind="cell" if i % 2 else "language").finish()
    open_fo(tracker, key="unfinished")
    assert [r.key for r in tracker.records()] == ["k4", "k3", "k2", "k1", "k0"]
    assert [r.key for r in tracker.records(kind="cell")] == ["k3", "k1"]


def test_what_finished_since_the_last_reading_is_listed_and_what_was_deleted_is_gone_after_a_minute(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_fo(tracker, key="k0")
    first.finish()
    assert [r.key for r in tracker.records()] == ["k0"]
    open_fo(tracker_of(tmp_path), key="k1").finish()  # as another process would
    assert [r.key for r in tracker.records()] == ["k1", "k0"]
    tracker.client.delete_run(first.run_id)
    monkeypatch.setattr("tasks.tracking.tracker._FRESH_SECONDS", 0.0)
    assert [r.key for r in tracker.records()] == ["k1"]


def test_artifacts_are_stored_and_read_where_they_lie(tracker: Tracker, tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "sft.json").write_text("{}")
    figure = Figure()
    figure.add_subplot().bar([0], [1])
    with open_fo(tracker) as run:
        run.log_folder(folder, "sft")
        run.log_figure(figure, "figures/density.png")
        run.log_text("<p>fo</p>", "report.html")
        run.log_file(folder / "sft.json", "more")
    found = tracker.download(run.run_id, "sft")
    assert found.is_relative_to(tmp_path / "artifacts")
    assert (found / "sft.json").read_text() == "{}"
    assert tracker.download(run.run_id, "figures/density.png").read_bytes().startswith(b"\x89PNG")
    assert tracker.download(run.run_id, "report.html").read_text() == "<p>fo</p>"
    with pytest.raises(ServiceError, match=r"sft2"):
        tracker.download(run.run_id, "sft2")
    with pytest.raises(ServiceError, match=r"no such folder"):
        run.log_folder(tmp_path / "missing", "sft")


def test_children_are_put_under_the_matrix_once(tracker: Tracker) -> None:
    matrix = open_fo(tracker, kind="matrix", subject="matrix", name="matrix")
    cells = [Child(name=f"cell {c}", kind="cell", subject=f"cell {c}", metrics={"score": 0.5}) for c in ("fo", "mt")]
    first = tracker.log_children(matrix, cells)
    assert tracker.log_children(matrix, cells) == first
    matrix.finish()
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{matrix.run_id}'")
    assert sorted(r.info.run_name for r in runs) == ["cell fo", "cell mt"]
    assert all(r.info.status == "FINISHED" and r.data.metrics == {"score": 0.5} for r in runs)
    assert [r.subject for r in tracker.records()] == ["matrix"]


def test_two_processes_create_the_store_and_log_at_the_same_time(tmp_path: Path) -> None:
    code = """
import os, sys
from tasks.quiet import quiet_services; quiet_services()
from mlflow import MlflowClient  # before there are two: they are to meet, and imports take seconds
from tasks.tracking.records import NewRun
from tasks.tracking.tracker import Tracker
other = os.fork()
who = "b" if other else "a"
tracker = Tracker(sys.argv[1], experiment="toy")
for i in range(5):
    with tracker.open_run(NewRun(name=who, kind="cell", subject=who, key=f"{who}{i}", parts={})) as run:
        run.log_metrics({f"m{j}": j for j in range(50)}, i)
if other:
    assert os.waitpid(other, 0)[1] == 0
"""
    store = tmp_path / "a store" / "mlflow.db"
    run_child(code, f"sqlite:///{store}")
    records = Tracker(f"sqlite:///{store}", experiment="toy").records()
    assert sorted(r.key for r in records) == sorted(f"{w}{i}" for w in "ab" for i in range(5))
    assert all(len(r.metrics) == 50 for r in records)
    assert sorted(p.name for p in store.parent.iterdir() if not p.name.endswith(".lock")) == ["mlflow.db"]


def test_threads_share_a_tracker(tracker: Tracker) -> None:
    def work(who: str) -> None:
        with open_fo(tracker, key=who, subject=who) as run:
            for step in range(5):
                run.log_metrics({"full.loss": float(step)}, step)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.key for r in tracker.records()} == {"t0", "t1", "t2", "t3"}


def test_mlflow_that_is_away_is_a_service_error_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match=r"\*\*\*@127\.0\.0\.1:9") as caught:
        Tracker("http://user:hunter2@127.0.0.1:9", experiment="toy")
    assert "hunter2" not in str(caught.value)
    assert "and that the service is up" in str(caught.value)


def test_a_deleted_experiment_is_named(tracker: Tracker, tmp_path: Path) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ServiceError, match="'toy' was deleted") as told:
        tracker_of(tmp_path)

    assignment, program, *arguments = shlex.split(str(told.value).partition("restore it: ")[2])
    assert shutil.which(program) is not None, "the command can be pasted"
    name, _, uri = assignment.partition("=")
    done = CliRunner().invoke(experiments, arguments[1:], env={name: uri})
    assert done.exit_code == 0, done.output
    assert tracker_of(tmp_path).experiment_id == tracker.experiment_id


def _write_to_a_full_disk(tracker: Tracker) -> None:
    with tracker.service("store x"), Path("/dev/full").open("w") as full:
        full.write("x")


def _write_under_a_file(tracker: Tracker) -> None:
    run = tracker.open_run(NewRun(name="a", kind="cell", subject="a", key="k", parts={}))
    folder = Path(tracker.client.get_experiment(tracker.experiment_id).artifact_location)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    run.log_text("x", "x.txt")


def _look_for_a_version(tracker: Tracker) -> None:
    with tracker.service("read version 3 of x"):
        tracker.client.get_model_version("x", "3")


def _make_an_invalid_name(tracker: Tracker) -> None:
    with tracker.service("register a/b"):
        tracker.client.create_registered_model("a/b")


@pytest.mark.parametrize(
    ("do", "kind", "told"),
    [
        (_write_to_a_full_disk, ServiceError, "could not store x: the disk is full"),
        (_write_under_a_file, ServiceError, "could not store x.txt of 'a': NotADirectoryError"),
        (_look_for_a_version, StoredFileError, "could not read version 3 of x, because it is not there: "),
        (_make_an_invalid_name, ServiceError, "could not register a/b: MlflowException: "),
    ],
)
def test_a_message_names_the_fault_and_advises_of_the_address_only_where_nobody_answers(
    tracker: Tracker, do: Callable[[Tracker], None], kind: type[ServiceError], told: str
) -> None:
    with pytest.raises(ServiceError) as raised:
        do(tracker)

    assert type(raised.value) is kind
    assert told in str(raised.value)
    assert "check the tracking URI" not in str(raised.value)


def test_the_commit_is_the_checkouts_or_else_the_given_one(tmp_path: Path) -> None:
    assert git_tags(tmp_path, "abc") == {"mlflow.source.git.commit": "abc"}
    assert git_tags(tmp_path) == {}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    clean = git_tags(tmp_path, "abc")
    assert len(clean["mlflow.source.git.commit"]) == 40
    assert clean["mlflow.source.git.dirty"] == "false"
    (tmp_path / "file").write_text("2")
    assert git_tags(tmp_path)["mlflow.source.git.dirty"] == "true"
