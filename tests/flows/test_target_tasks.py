"""Every objective goes through the whole loop: gate, training, cells, matrix, export; bad rows stop one alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ltsft.objectives.biaffine import load_parser
from ltsft.objectives.registry import OBJECTIVES
from ltsft.project.project import ProjectRef
from ltsft.release.release import Slot
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits
from ltsft.serving.metrics import Metrics
from ltsft.serving.readers.registry import reader_class
from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app
from ltsft.toy.family import write_family
from ltsft.toy.settings import ToyConfig
from ltsft.training.prepare import labelled_rows
from tasks.evaluation.matrix import read_matrix
from tasks.releases.registry import Registry
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
CONFIG = Path(__file__).parents[2] / "configs" / "toy_tasks.yaml"
FAMILY = ToyConfig(
    seen=1, unseen=1, nouns=16, verbs=12, adjectives=8, adverbs=4, text_lines=300, train=60, dev=12, test=30
)


@pytest.fixture(scope="module")
def project_file(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project of all target tasks on two tiny languages and an untrained base, a few steps each."""
    folder = tmp_path_factory.mktemp("tasks")
    write_family(folder / "data", FAMILY)
    project = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    codes = (*FAMILY.seen_codes, *FAMILY.unseen_codes)
    phase = {"min_steps": 3, "max_steps": 3, "learning_rate": 1e-3}
    recipe = {"density": 0.2, "full": phase, "sparse": phase, "batch_size": 8, "max_length": 48, "evaluations": 1}
    project |= {"data_root": str(folder / "data"), "base": {"id": str(tiny_base)}, "unseen": [codes[1]]}
    project["languages"] = {
        code: {"name": code, "script": "Latn", "text": f"text:text/{code}.txt.gz"} for code in codes
    }
    for target in project["target_tasks"].values():
        first = next(iter(target["test"].values()))
        target["test"] = {code: first.replace("qaa", code) for code in codes}
    for name in ("pos", "nli"):  # of these from both languages: one mixed, one after the other
        sources = project["target_tasks"][name]["sources"]
        sources[codes[1]] = {split: file.replace("qaa", codes[1]) for split, file in sources["qaa"].items()}
    project["target_tasks"]["nli"]["order"] = "sequential"
    project["recipes"] = dict.fromkeys(["language", *project["target_tasks"]], recipe)
    words = folder / "data" / "words.tsv"
    words.write_text("vagolin\trena\n", encoding="utf-8")
    augmentations = {"noise": {}, "code_switch": {"words": f"tsv:{words.name}"}}
    for name in ("ner", "nli", "qa"):
        consistency = {"example": 1.0, "model": 1.0, "augmentations": augmentations}
        project["recipes"][name] = {**recipe, "consistency": consistency}
    few = {"min_sentences": 4, "max_label_share": 1.0, "min_labels_present": 0.0, "min_label_agreement": 0.0}
    project["gates"]["labelled"] |= few
    project["store"] = {"folder": str(folder / "store")}
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(project)), sort_keys=False), encoding="utf-8")
    return file


def test_every_objective_goes_through_the_loop_and_a_bad_row_stops_its_own_target_task(
    project_file: Path,
    rerun: Callable[[Path], Any],
    opened: Callable[[Path], Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entities = project_file.parent / "data" / "entities" / "qaa" / "train.conll.gz"
    sound = entities.read_bytes()
    entities.write_bytes(gzip.compress(gzip.decompress(sound) + b"\nbado\nO\n"))
    state = rerun(project_file)
    assert state.is_failed()
    assert "share of rows that cannot be read" in state.message
    workspace = opened(project_file)
    gaps = {cell.target_task: cell.reason for cell in read_matrix(workspace).cells if cell.is_gap}
    assert set(gaps) == {"ner"}
    assert "ner" not in {s.product.target_task for s in workspace.plan.steps if s.is_up_to_date}

    entities.write_bytes(sound)
    state = rerun(project_file)
    assert state.is_completed(), state.message
    workspace = opened(project_file)
    assert not workspace.plan.stale
    matrix = read_matrix(workspace)
    for cell in matrix.cells:
        objective = OBJECTIVES[workspace.project.target_tasks[cell.target_task].objective]
        assert cell.score is not None
        assert 0.0 <= cell.score <= 1.0
        assert (cell.metric, cell.unit) == (objective.metric, objective.unit)
        assert set(cell.beside) == set(objective.shown.values())
        assert (cell.majority is None) == (cell.target_task in ("dp", "ner", "qa"))
    trees = gzip.decompress((project_file.parent / "data/treebanks/qaa/test.conllu.gz").read_bytes()).decode()
    words = sum("\t" in line for line in trees.splitlines())
    task = workspace.load_sft(workspace.made("task pos qaa and qab seed 1"))
    codes = ("qaa", "qab")
    assert task.source_languages == codes
    metrics = workspace.tracker.client.get_run(workspace.made("task nli qaa then qab seed 1")).data.metrics
    for code in codes:
        change = metrics[f"forgetting.after.{code}"] - metrics[f"forgetting.before.{code}"]
        assert metrics[f"forgetting.change.{code}"] == pytest.approx(change)
    assert metrics["sparse.model_consistency"] > 0.0
    sizes = {cell.target_task: cell.test_size for cell in matrix.cells if cell.language == "qaa"}
    assert sizes["pos"] == sizes["dp"] == words
    assert (sizes["nli"], sizes["qa"]) == (30, 10)

    _every_target_task_is_released_and_answers_as_it_was_scored(project_file, workspace, monkeypatch)

    from typer.testing import CliRunner

    from ltsft.cli.main import app

    parts = [workspace.tracker.download(workspace.made(s), "sft") for s in ("language qaa", "task dp qaa seed 1")]
    out = tmp_path / "parser"
    arguments = ["compose", *map(str, parts), "--base", workspace.project.base.id, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert load_parser(out).config.id2label[0] == "advcl"


@pytest.mark.slow
def test_experiments_take_other_target_tasks_and_adapters(
    project_file: Path, opened: Callable[[Path], Workspace], prefect_server: None
) -> None:
    from flows.compare_methods import compare_methods
    from flows.sweep_density import sweep_density

    ref = ProjectRef(file=str(project_file))
    state = compare_methods(ref, methods=["mad_x"], target_task="dp", languages=["qab"], return_state=True)
    assert state.is_completed(), state.message
    workspace = opened(project_file)
    (record,) = workspace.tracker.records(kind="comparison")
    rows = json.loads(workspace.tracker.download(record.run_id, "table.json").read_text())
    assert [(row["method"], row["language"]) for row in rows] == [
        (method, language) for method in ("lt_sft", "mad_x") for language in ("qab", "mean")
    ]
    assert rows[-1]["lower"] <= rows[-1]["difference"] <= rows[-1]["upper"]

    adapters = ref.model_copy(update={"method": "mad_x"})
    state = sweep_density(
        adapters, language_densities=[0.2], task_densities=[0.2, 0.5], target_task="ner", languages=["qab"],
        return_state=True,
    )  # fmt: skip
    assert state.is_completed(), state.message
    (record,) = workspace.tracker.records(kind="sweep")
    points = json.loads(workspace.tracker.download(record.run_id, "table.json").read_text())
    assert [p["task_density"] for p in points] == [0.2, 0.5]
    assert points[0]["train_score"] is not None
    assert "interference.overlap" not in points[0], "adapters have no supports that could overlap"


def _every_target_task_is_released_and_answers_as_it_was_scored(
    file: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promote all cells (the canary asks in this process), and ask a server every row of the test sets."""
    from fastapi.testclient import TestClient

    from flows.promote import promote
    from tasks.releases import canary
    from tasks.releases.pyfunc import predict_rows

    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.tracker.tracking_uri)
    monkeypatch.setattr(canary, "_ask", lambda uri, _, rows, __: predict_rows(uri, rows))
    loose = ("gates.release.min_score=0.0", "gates.release.min_over_majority=-1.0")
    state = promote(ProjectRef(file=str(file), overrides=loose), return_state=True)
    assert state.is_completed(), state.message
    registry = Registry(workspace.tracker, workspace.project.name)
    live = registry.live()
    assert len(live) == 10
    assert live[Slot("qaa", "qa")].composition.labels == ()
    assert live[Slot("qaa", "nli")].composition.takes_pairs

    service = Service(Engine(workspace.base, limits=Limits()), registry, limits=Limits(), metrics=Metrics())
    service.start()
    client = TestClient(create_app(service))
    try:
        for slot, release in live.items():
            target = workspace.project.target_tasks[slot.target_task]
            reader, rows = reader_class(target.objective), labelled_rows(target, target.test[slot.language])
            cell = workspace.tracker.find(workspace.plan.step(f"cell {slot}").product.key)
            assert cell is not None
            wanted = np.load(workspace.tracker.download(cell.run_id, "outcomes/seed-1.npy"), allow_pickle=False)
            found = []
            for at in range(0, len(rows), 16):
                body = {"inputs": [reader.asked(row).as_row() for row in rows[at : at + 16]]}
                answer = client.post(f"/v1/{slot.target_task}/{slot.language}", json=body)
                assert answer.status_code == 200, answer.text
                found += [service.live[slot].reader.result.model_validate(r) for r in answer.json()["results"]]
            outcomes = [reader.right(row, one.columns()) for row, one in zip(rows, found, strict=True)]
            np.testing.assert_allclose(outcomes, wanted, atol=1e-6, err_msg=str(slot))
            assert release.version == 1
    finally:
        service.close()
