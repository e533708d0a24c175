"""What flows end in: a verdict and a service that stays away are two kinds of end, and neither is told as the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_proxy import AWAY, FaultyProxy

from ltsft.project.project import ProjectRef
from ltsft.release.release import Slot
from ltsft.release.verdicts import Canary
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
Open = Callable[[Path], Workspace]
SLOT = Slot("bb", "pos")


@pytest.fixture
def project(changeable_project: Path, mlflow_proxy: FaultyProxy, prefect_server: None) -> ProjectRef:
    return ProjectRef(file=str(changeable_project))


@pytest.fixture(autouse=True)
def canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each promotion would take most of the time."""
    import flows.promote as promotion

    monkeypatch.setattr(promotion, "ask_canary", lambda *_: Canary(True, 0.1, "a stand-in"))


def cut_registry(proxy: FaultyProxy, *, for_requests: int = 10**6) -> None:
    """Let the registry be away, though not the runs, for so many requests."""
    left = iter(range(for_requests))

    def fault(number: int, method: str, path: str) -> str | None:
        is_registry = "registered-models" in path or "model-versions" in path
        return AWAY if is_registry and next(left, None) is not None else None

    proxy.fault = fault


def promotions_of(opened: Open, project: ProjectRef) -> list[str]:
    """The states of the records of promotions in MLflow."""
    found = opened(Path(project.file)).tracker.search("tags.`ltsft.kind` = 'promotion'")
    return [run.info.status for run in found]


def test_a_registry_that_is_away_refuses_nothing_and_one_that_comes_back_in_time_is_waited_for(
    project: ProjectRef, mlflow_proxy: FaultyProxy, opened: Open
) -> None:
    from flows.promote import Promotions, UnreleasedError, promote

    cut_registry(mlflow_proxy)
    state = promote(project, language="bb", return_state=True)

    assert (state.type.value, state.name) == ("FAILED", "Unavailable")
    error = state.result(raise_on_failure=False)
    assert isinstance(error, UnreleasedError)
    assert (dict(error.promotions.live), dict(error.promotions.refused)) == ({}, {})
    assert list(error.promotions.failed) == [SLOT]
    assert "that the service is up" in state.message
    assert promotions_of(opened, project) == [], "no verdict is on record"

    cut_registry(mlflow_proxy, for_requests=1)
    state = promote(project, language="bb", return_state=True)

    assert (state.type.value, state.name) == ("COMPLETED", "Completed"), state.message
    done = state.result()
    assert isinstance(done, Promotions)
    assert (list(done.live), done.refused, done.failed) == ([SLOT], {}, {})
    assert promotions_of(opened, project) == ["FINISHED"]


def test_a_nightly_run_and_an_onboarding_whose_releases_a_service_kept_back_have_failed(
    project: ProjectRef, mlflow_proxy: FaultyProxy
) -> None:
    from flows.onboard_language import onboard_language
    from flows.retrain import retrain

    cut_registry(mlflow_proxy)
    nightly = retrain(project, release=True, return_state=True)
    onboarding = onboard_language(project, "bb", return_state=True)

    assert (nightly.type.value, nightly.name) == ("FAILED", "Unavailable")
    assert nightly.message.startswith("all 8 products are up to date\nReleases: 0 of 3 are live")
    assert (onboarding.type.value, onboarding.name) == ("FAILED", "Unavailable")
    assert "- candidate pos bb: MLflow at" in onboarding.message


def test_a_cell_that_a_service_kept_from_being_scored_is_no_verdict(
    project: ProjectRef, mlflow_proxy: FaultyProxy, opened: Open
) -> None:
    from flows.evaluate_matrix import evaluate_matrix

    test = Path(project.file).parent / "data" / "bb-test.conllu"
    test.write_text(test.read_text() + "# one more comment\n\n")
    before = len(mlflow_proxy.requests)
    mlflow_proxy.fault = lambda number, method, path: AWAY if path.endswith("runs/log-batch") else None

    state = evaluate_matrix(project, only=["cell pos bb"], return_state=True)

    assert (state.type.value, state.name) == ("FAILED", "Unavailable")
    assert state.message.startswith("1 of 1 cells could not be scored:\n- cell pos bb: MLflow at http://127.0.0.1")
    tried = [path for _, path, fault in mlflow_proxy.requests[before:] if fault == AWAY]
    assert len(tried) >= 3, "it was tried again"
    workspace = opened(Path(project.file))
    assert not workspace.tracker.latest_failed()

    mlflow_proxy.fault = lambda number, method, path: None
    assert evaluate_matrix(project, only=["cell pos bb"], return_state=True).name == "Completed"
    test.write_text(test.read_text().replace("\tNOUN\t", "\tNUON\t"))
    refused = evaluate_matrix(project, only=["cell pos bb"], return_state=True)
    assert (refused.type.value, refused.name) == ("COMPLETED", "Refused")
    assert "1 of 1 cells were refused:\n- cell pos bb: the data did not pass" in refused.message


def test_bad_data_is_refused_by_name_and_a_service_is_not_and_both_are_raised_from_a_call(
    project: ProjectRef, mlflow_proxy: FaultyProxy
) -> None:
    from flows.adapt_language import adapt_language
    from ltsft.errors import ServiceError, ValidationError

    text = Path(project.file).parent / "data" / "bb.txt"
    text.write_text("это другой алфавит\n" * 200)
    state = adapt_language(project, "bb", return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Refused")
    assert state.message.startswith("language bb: the data did not pass the validation gate:")
    with pytest.raises(ValidationError):
        adapt_language(project, "bb")

    mlflow_proxy.fault = lambda number, method, path: AWAY
    away = adapt_language(project, "bb", return_state=True)
    assert (away.type.value, away.name) == ("FAILED", "Unavailable")
    with pytest.raises(ServiceError):
        adapt_language(project, "bb")
