"""From a scored cell to a champion and back: the flows, the command, the registry, the model that anybody can load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from ltsft.base import load_base
from ltsft.cli.main import app
from ltsft.release.release import Release, Slot
from ltsft.serving.answers import Input
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits
from tasks.releases.registry import ROLLED_BACK, Registry, open_registry
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
SLOT = Slot("bb", "pos")
Open = Callable[[Path], Workspace]


@pytest.fixture
def ltsft(changeable_project: Path, prefect_server: None) -> Callable[..., Any]:
    """Call the command on the project."""

    def call(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments), env={"LTSFT_PROJECT": str(changeable_project)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def another_composition(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Make what is put forward another composition: the task SFT with another weight. The canary is not asked."""
    import flows.promote as promotion
    from ltsft.release.verdicts import Canary

    compose = promotion.compose_recipe
    monkeypatch.setattr(promotion, "ask_canary", lambda *_: Canary(True, 0.1, "a stand-in"))

    def with_weight(weight: float) -> None:
        def other(workspace: Workspace, slot: Slot) -> Any:
            made = compose(workspace, slot)
            parts = (made.parts[0], made.parts[1].model_copy(update={"weight": weight}))
            return made.model_copy(update={"parts": parts})

        monkeypatch.setattr(promotion, "compose_recipe", other)

    return with_weight


def registry_of(opened: Open, file: Path) -> Registry:
    return open_registry(opened(file))


def test_promote_releases_what_passes_with_a_real_canary_and_anybody_can_load_it(
    ltsft: Callable[..., Any], changeable_project: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ltsft("promote", "bb", "pos", "--why", "the first")
    assert done.exit_code == 0, done.output
    assert "pos bb: version 1 is live (nothing was before)" in done.stdout

    workspace = opened(changeable_project)
    registry = open_registry(workspace)
    assert registry.champion(SLOT) == registry.candidate(SLOT) == 1
    version = registry.version(SLOT, 1)
    [event] = registry.events(SLOT)
    assert (event.kind, event.before, event.after, event.reason, event.is_finished) == (
        "promotion",
        None,
        1,
        "the first",
        True,
    )
    run = workspace.tracker.client.get_run(event.run_id)
    assert run.data.metrics["gate.canary.passed"] == run.data.metrics["gate.floor.passed"] == 1.0
    assert run.data.metrics["gate.floor.floor"] == 0.01
    assert "gate.interference.overlap" in run.data.metrics
    assert version.tags["ltsft.verdict"] == "passed"
    page = workspace.tracker.client.get_model_version(version.name, "1").description
    assert "task pos aa seed 1" in page
    assert "the first release: floor and canary decide" in page
    model = workspace.tracker.download(event.run_id, "model")
    assert not list(model.rglob("*.pkl"))
    assert not list(model.rglob("*.safetensors")), "the recipe is kept, not a copy of the base"

    again = ltsft("promote", "bb", "pos")
    assert "version 1 is live already" in again.stdout
    assert len(registry.events(SLOT)) == 1

    _mlflow_gives_what_a_server_gives(workspace, version.uri, monkeypatch)
    shown = json.loads(ltsft("releases", "--json").stdout)
    assert [(row["release"], row["version"], row["why"], row["how"]) for row in shown] == [
        ("pos bb", 1, "the first", "promotion")
    ]
    assert set(shown[0]["parent_runs"]) == {"language bb", "task pos aa seed 1"}


def test_onboarding_ends_with_candidates_and_leaves_what_is_live(
    changeable_project: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.promote as promotion
    from flows.onboard_language import onboard_language
    from ltsft.project.project import ProjectRef
    from ltsft.release.verdicts import Canary

    monkeypatch.setattr(promotion, "ask_canary", lambda *_: Canary(True, 0.1, "a stand-in"))
    ref = ProjectRef(file=str(changeable_project), overrides=("gates.release.min_score=0.999",))
    first = onboard_language(ref, "bb", return_state=True)
    second = onboard_language(ref, "bb", return_state=True)

    registry = registry_of(opened, changeable_project)
    assert (first.is_completed(), first.name) == (True, "Refused"), "a refusal by a gate is no failure, and shown"
    assert "- pos bb: version 1 is a candidate, score 0." in first.message
    assert "and would be refused by floor:" in first.message
    assert "- pos bb: version 1 is a candidate already, and would be refused: its page says why" in second.message
    assert (registry.candidate(SLOT), registry.champion(SLOT)) == (1, None)
    assert registry.version(SLOT, 1).tags["ltsft.verdict"] == "refused"
    assert registry.candidate(Slot("aa", "pos")) is None, "only the row of the language"
    assert registry.events(SLOT) == [], "nothing was moved"


def _mlflow_gives_what_a_server_gives(workspace: Workspace, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow.pyfunc import scoring_server

    # `mlflow.set_tracking_uri` would leave a variable in the environment, and with it its store to all later tests.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.tracker.tracking_uri)
    loaded = mlflow.pyfunc.load_model(uri)
    text = loaded.input_example["text"][0]
    table = loaded.predict(pd.DataFrame({"text": [text]}))
    client = TestClient(scoring_server.init(loaded))
    served = client.post("/invocations", json={"dataframe_records": [{"text": text}]}).json()["predictions"]
    unknown = client.post("/invocations", json={"dataframe_records": [{"question": text}]})
    assert (unknown.status_code, "a row needs text or words" in unknown.text) == (400, True)
    registry = open_registry(workspace)
    engine = Engine(load_base(workspace.base.id), limits=Limits())
    admitted = engine.admit(Release(1, registry.version(SLOT, 1).composition), registry)
    prepared = admitted.reader.prepare(Input(text=text))
    words = admitted.reader.read(prepared, engine.run(admitted, prepared.pieces)).words
    assert list(table["labels"][0]) == served[0]["labels"] == [word.label for word in words]
    assert list(table["scores"][0]) == [word.score for word in words]
    assert loaded.metadata.signature.inputs.input_names() == ["text", "words"]


def test_rollbacks_go_back_one_version_each_and_what_was_rolled_back_stays_out(
    ltsft: Callable[..., Any], changeable_project: Path, opened: Open, another_composition: Callable[[float], None]
) -> None:
    for weight in (1.0, 0.9, 0.8):
        another_composition(weight)
        assert ltsft("promote", "bb", "pos").exit_code == 0
    registry = registry_of(opened, changeable_project)
    assert registry.champion(SLOT) == 3

    assert "version 2 is live (version 3 was)" in ltsft("rollback", "bb", "pos", "--why", "bad").stdout
    assert "version 1 is live (version 2 was)" in ltsft("rollback", "bb", "pos").stdout
    refused = ltsft("rollback", "bb", "pos")
    assert refused.exit_code == 2
    assert "there is nothing before it" in refused.stderr
    assert registry.champion(SLOT) == 1
    assert {v.number for v in registry.versions(SLOT) if ROLLED_BACK in v.tags} == {2, 3}

    kept_out = ltsft("promote", "bb", "pos")
    assert kept_out.exit_code == 1
    assert "was rolled back; make a better one, or say --again" in kept_out.stderr
    assert ltsft("promote", "bb", "pos", "--again").exit_code == 0
    assert registry.champion(SLOT) == 3
    wrong = ltsft("rollback", "bb", "pos", "--to", "9")
    assert "versions that were live before 3 are 1, 2" in wrong.stderr
    assert "version 2 is live" in ltsft("rollback", "bb", "pos", "--to", "2").stdout
    assert "nothing is live any more" in ltsft("rollback", "bb", "pos", "--to", "none").stdout
    assert registry.live() == {}
    moves = [(e.kind, e.before, e.after) for e in registry.events(SLOT)]
    assert moves[3:] == [
        ("rollback", 3, 2),
        ("rollback", 2, 1),
        ("promotion", 1, 3),
        ("rollback", 3, 2),
        ("rollback", 2, None),
    ]


def test_what_fails_a_gate_is_registered_but_not_live_and_says_why(
    ltsft: Callable[..., Any], changeable_project: Path, opened: Open, another_composition: Callable[[float], None]
) -> None:
    another_composition(1.0)
    done = ltsft("promote", "bb", "pos", "--set", "gates.release.min_score=0.999")

    assert done.exit_code == 1
    assert "version 1 was refused by floor: score" in done.stderr
    workspace = opened(changeable_project)
    registry = open_registry(workspace)
    assert (registry.champion(SLOT), registry.candidate(SLOT)) == (None, 1)
    assert registry.version(SLOT, 1).tags["ltsft.verdict"] == "refused"
    failed = workspace.tracker.search("tags.`ltsft.kind` = 'promotion'")
    assert [run.info.status for run in failed] == ["FAILED"]
    assert failed[0].data.metrics["gate.floor.passed"] == 0.0
    assert failed[0].data.metrics["gate.canary.passed"] == 1.0

    assert ltsft("promote", "zz", "pos").exit_code == 2
    assert "allowed are pos aa, pos bb, pos cc" in ltsft("promote", "zz", "pos").stderr


def test_a_cell_keeps_the_outcome_of_every_test_sentence(finished_project: Path, opened: Open) -> None:
    workspace = opened(finished_project)
    cell = workspace.tracker.find(workspace.plan.step("cell pos cc").product.key)
    assert cell is not None
    outcomes = np.load(workspace.tracker.download(cell.run_id, "outcomes/seed-1.npy"), allow_pickle=False)
    assert outcomes.shape == (cell.metrics["test_sentences"], 2)
    assert outcomes[:, 1].sum() == cell.metrics["test_size"]
    assert outcomes[:, 0].sum() / outcomes[:, 1].sum() == pytest.approx(cell.metrics["score.seed.1"])


def test_the_canary_tells_what_does_not_load_what_is_missing_and_what_answers_wrong(
    finished_project: Path, opened: Open
) -> None:
    from ltsft.data.conll import TaggedRow
    from ltsft.serving.readers.words import TokenReader
    from tasks.releases.canary import compare, run_canary

    workspace = opened(finished_project)
    rows = [TaggedRow(("a", "b"), ("NOUN", "VERB"), 1, "t", "a b"), TaggedRow(("c",), ("NOUN",), 4, "t", "c")]
    outcomes = np.array([[2.0, 2.0], [1.0, 1.0]])
    dead = run_canary(
        "models:/nowhere/1",
        tracking_uri=workspace.tracker.tracking_uri,
        reader=TokenReader,
        rows=rows,
        outcomes=outcomes,
        timeout_seconds=120,
    )
    assert not dead.answered
    assert "a fresh process could not load it" in dead.message

    def told(*labels: list[str]) -> str:
        return compare([{"labels": row} for row in labels], TokenReader, rows, outcomes)

    assert told(["NOUN", "VERB"], ["NOUN"]) == ""
    assert told(["NOUN", "VERB"]) == "it answered 1 rows instead of 2"
    assert told(["NOUN"], ["NOUN"]) == "its answer to row 0 is none: it labelled 1 words instead of 2"
    assert "its answer to row 0 is none" in compare([{}, {}], TokenReader, rows, outcomes)
    assert told(["VERB", "NOUN"], ["VERB"]).startswith("3 of 3 that are counted came out otherwise")


def test_exports_and_bundles_come_from_the_command(
    ltsft: Callable[..., Any], another_composition: Callable[[float], None], tmp_path: Path
) -> None:
    from transformers import AutoModelForTokenClassification

    another_composition(1.0)
    assert "nothing is released" in ltsft("bundle", str(tmp_path / "bundle")).stderr
    not_live = ltsft("export", "bb", "pos", "--to", "hf", str(tmp_path / "hf"))
    assert "pos bb (not released)" in not_live.stdout
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "hf").config.id2label[0] == "NOUN"
    assert ltsft("promote", "bb", "pos").exit_code == 0
    assert "1 releases to" in ltsft("bundle", str(tmp_path / "bundle")).stdout
    assert (
        "has no version 7; there are 1"
        in ltsft("export", "bb", "pos", "--to", "hf", str(tmp_path / "x"), "--version", "7").stderr
    )
    assert "--to hf needs a folder" in ltsft("export", "bb", "pos", "--to", "hf").stderr
    assert "--to must be hf, onnx" in ltsft("export", "bb", "pos", "--to", "gguf", "x").stderr


def test_retrain_releases_what_passes_its_gates_and_a_refusal_is_told_without_failing(
    changeable_project: Path,
    set_value: Callable[[Path, str, Any], None],
    opened: Open,
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flows.promote as promotion
    from flows.retrain import retrain
    from ltsft.project.project import ProjectRef
    from ltsft.release.verdicts import Canary

    monkeypatch.setattr(promotion, "ask_canary", lambda *_: Canary(True, 0.1, "a stand-in"))
    set_value(changeable_project, "gates.release", {"min_score": 0.99})
    ref = ProjectRef(file=str(changeable_project))

    refused = retrain(ref, release=True, return_state=True)

    assert (refused.is_completed(), refused.name) == (True, "Refused")
    assert "refused by floor" in str(refused.message)
    registry = registry_of(opened, changeable_project)
    assert registry.champion(SLOT) is None

    set_value(changeable_project, "gates.release", {"min_score": 0.01, "min_over_majority": -1.0})
    released = retrain(ref, release=True, return_state=True)

    assert (released.is_completed(), released.name) == (True, "Completed")
    assert "is live" in str(released.message)
    assert registry.champion(SLOT) is not None
