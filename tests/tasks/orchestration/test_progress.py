"""Progress reaches MLflow and Prefect, and a service that is away does not stop a training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from ltsft.errors import ServiceError, TrainingError
from ltsft.training.stages import Progress
from tasks.orchestration import progress as module
from tasks.orchestration.progress import ProgressReporter, artifact_key, show, shown_progress


class FakeRun:
    """Takes metrics, or refuses them while it is away."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.is_away = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.is_away:
            raise ServiceError("MLflow is away")
        assert step is not None
        self.points.append((step, dict(metrics)))


class FakePrefect:
    """Takes progress artifacts, or refuses them while it is away."""

    def __init__(self) -> None:
        self.shown: list[float] = []
        self.is_away = False

    def create(self, progress: float, key: str, description: str) -> UUID:
        return self._take(progress)

    def update(self, artifact: UUID, progress: float) -> UUID:
        return self._take(progress)

    def _take(self, progress: float) -> UUID:
        if self.is_away:
            raise httpx.ConnectError("Prefect is away")
        self.shown.append(progress)
        return uuid4()


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str, *values: object) -> None:
        self.lines.append(message % values)

    warning = info


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(module, "get_run_logger", lambda: log)
    return log


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch, log: Log) -> FakePrefect:
    fake = FakePrefect()
    monkeypatch.setattr(module, "create_progress_artifact", fake.create)
    monkeypatch.setattr(module, "update_progress_artifact", fake.update)
    return fake


def reporter(run: Any, *, iterations: int = 1) -> ProgressReporter:
    return ProgressReporter(run, name="language fo", project="ud", iterations=iterations)


def test_each_point_has_the_step_of_its_phase(run: FakeRun, prefect: FakePrefect) -> None:
    with reporter(run) as report:
        for step in (1, 2):
            report(Progress("full", step, 2, {"full.loss": float(step)}))
        report(Progress("selection", 0, 0))
        report(Progress("sparse", 1, 2, {"sparse.loss": 3.0}))

    assert run.points == [(1, {"full.loss": 1.0}), (2, {"full.loss": 2.0}), (1, {"sparse.loss": 3.0})]


def test_a_later_iteration_goes_on_counting_also_in_a_resumed_training(run: FakeRun, prefect: FakePrefect) -> None:
    with reporter(run, iterations=3) as report:  # resumed in the second iteration: the first is never reported
        report(Progress("full", 5, 10, {"full.loss": 1.0}, iteration=1))
        report(Progress("sparse", 7, 20, {"sparse.loss": 1.0}, iteration=2))

    assert [step for step, _ in run.points] == [15, 47]


def test_points_that_mlflow_could_not_take_are_sent_later_and_in_order(
    run: FakeRun, prefect: FakePrefect, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(module, "AWAY_SECONDS", 0.0)
    with reporter(run) as report:
        run.is_away = True
        for step in (1, 2):
            report(Progress("full", step, 3, {"full.loss": float(step)}))
        assert run.points == []
        run.is_away = False
        report(Progress("full", 3, 3, {"full.loss": 3.0}))

    assert [step for step, _ in run.points] == [1, 2, 3]
    assert any("metrics are kept for later" in line for line in log.lines)


def test_at_the_end_mlflow_has_to_be_there(run: FakeRun, prefect: FakePrefect) -> None:
    def train() -> None:
        with reporter(run) as report:
            run.is_away = True
            report(Progress("full", 1, 1, {"full.loss": 1.0}))

    with pytest.raises(ServiceError, match="away"):
        train()


def test_the_error_of_a_training_is_told_even_if_mlflow_is_away(run: FakeRun, prefect: FakePrefect) -> None:
    def train() -> None:
        with reporter(run) as report:
            report(Progress("full", 1, 1, {"full.loss": 1.0}))
            run.is_away = True
            raise TrainingError("the full phase lost its way")

    with pytest.raises(TrainingError, match="lost its way") as raised:
        train()
    assert "MLflow is away" in raised.value.__notes__[0]


def test_prefect_being_away_does_not_stop_a_training(
    run: FakeRun, prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    with reporter(run) as report:
        prefect.is_away = True
        report(Progress("full", 1, 1, {"full.loss": 1.0}))
    prefect.is_away = True
    with reporter(run) as report:
        report(Progress("full", 1, 1, {"full.loss": 1.0}))

    assert len(run.points) == 2


def test_the_artifact_shows_the_share_of_all_phases(
    run: FakeRun, prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    with reporter(run, iterations=2) as report:
        report(Progress("full", 5, 10))
        report(Progress("selection", 0, 0))
        report(Progress("sparse", 5, 10))
        report(Progress("full", 5, 10, iteration=1))
        report(Progress("sparse", 10, 10, iteration=1))

    assert prefect.shown == [0.0, 12.5, 25.0, 37.5, 62.5, 100.0, 100.0]


def test_the_terminal_shows_what_is_done_a_bar_and_warnings(
    run: FakeRun, prefect: FakePrefect, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("flows")
    for ours in (logger, logging.getLogger("ltsft")):
        monkeypatch.setattr(ours, "propagate", False)  # Prefect's console handler is off where bars are shown
    monkeypatch.setenv("COLUMNS", "120")
    with shown_progress():
        show("language fo")
        with reporter(run) as report:
            report(Progress("full", 1, 2))
            logger.warning("language fo is being made by another run [key]")
            logger.error("Finished in state Failed()")
            for name in ("ltsft.training.settling", "ltsft.training.settling", "ltsft.stranger", "ltsft.stranger"):
                logging.getLogger(name).warning("%s warns", name)

    shown = capsys.readouterr().err
    assert [shown.count(f"ltsft.{name} warns") for name in ("training.settling", "stranger")] == [1, 2]
    assert "language fo is being made by another run [key]" in shown
    assert "Finished in state" not in shown
    assert "language fo: trained in 0 s" in shown


def test_outside_of_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show("language fo")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (("matrix", "Real.UD_run-1"), "matrix-real-ud-run-1"),
        (("validation", "ud", "language zh_Hans"), "validation-ud-language-zh-hans"),
        (("training", "My_1", "task pos en seed 1"), "training-my-1-task-pos-en-seed-1"),
    ],
)
def test_artifact_keys_are_what_prefect_allows(parts: tuple[str, ...], key: str) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    assert artifact_key(*parts) == key
    assert ArtifactCreate(key=artifact_key(*parts), type="markdown").key == key
