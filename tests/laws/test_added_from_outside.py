"""Another objective is one file and one line, and so is another method: both go from a project file to an answer."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import yaml
from fastapi.testclient import TestClient

from ltsft.base import load_base
from ltsft.errors import ConfigError
from ltsft.evaluation.scoring import CellData, Scorer
from ltsft.methods.registry import METHODS
from ltsft.objectives.masked_lm import MaskedLM
from ltsft.objectives.registry import OBJECTIVES, model_of
from ltsft.project.plan import Fingerprints, products
from ltsft.project.project import load_project
from ltsft.release.release import ComposedBase, ComposedPart, Composition, Release, Slot
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits
from ltsft.serving.metrics import Metrics
from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app
from ltsft.sft.files import load_sft, read_manifest, save_sft
from ltsft.training.prepare import labelled_rows, language_training, objective_of, task_training
from ltsft.training.train import train_sft

SUPPORT = Path(__file__).parents[1] / "support"
WORDS = ("bado", "kelo", "nira", "moti")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of somebody else, with the two lines that make it known."""
    monkeypatch.syspath_prepend(str(SUPPORT))
    import outside

    monkeypatch.setitem(OBJECTIVES, "length", outside.Length)
    monkeypatch.setitem(METHODS, "stride", outside.Stride())
    return outside


@pytest.fixture
def project_file(tiny_project: Path) -> Path:
    data = tiny_project.parent / "data"
    rows = ["text\tlong"]
    for i in range(24):
        count = 6 if i % 2 else 1
        rows.append(" ".join(WORDS[(i + j) % 4] for j in range(count)) + ("\tyes" if i % 2 else "\tno"))
    (data / "lengths.tsv").write_text("\n".join(rows) + "\n")
    source = "tsv:lengths.tsv"
    target = {"objective": "length", "sources": {"aa": {"train": source}}, "test": {"bb": source}}
    phase = {"max_steps": 30, "min_steps": 30, "learning_rate": 5e-3}
    recipe = {"density": 0.1, "full": phase, "sparse": phase, "batch_size": 8, "max_length": 16, "evaluations": 1}
    short = {**phase, "max_steps": 1, "min_steps": 1}
    project = yaml.safe_load(tiny_project.read_text(encoding="utf-8"))
    project |= {"method": "stride", "target_tasks": {"length": target}}
    project["recipes"] = {"language": {**recipe, "sparse": short}, "length": recipe}
    project["methods"] = {"stride": {"recipes": {"language": {"stride": 5}}}}
    tiny_project.write_text(yaml.safe_dump(project), encoding="utf-8")
    return tiny_project


def test_an_objective_and_a_method_from_outside_are_planned_learnt_scored_released_and_served(
    outside: ModuleType, project_file: Path, tmp_path: Path
) -> None:
    project = load_project(project_file)
    assert project.recipes["language"].own == {"stride": 5}
    prints = Fingerprints("e" * 64, "h" * 64, "t" * 64, {str(s): str(s) for s in project.all_sources().values()})
    planned = {product.subject: product for product in products(project, prints)}
    assert planned["language aa"].parts["method"] == "stride"
    assert planned["language aa"].parts["recipe"]["stride"] == 5
    assert "stride" not in planned["task length aa seed 1"].parts["recipe"], "it is as it is by default"
    assert planned["task length aa seed 1"].parts["objective"] == "length"

    base, target = load_base(project.base.id), project.target_tasks["length"]
    lines = [" ".join(WORDS[:3])] * 40
    folders = {}
    for code in ("aa", "bb"):
        folder, recipe = tmp_path / code, project.recipes["language"]
        training = language_training(base, lines, language=code, recipe=recipe, folder=folder, method="stride")
        folders[code] = save_sft(train_sft(base, training, folder=folder, device="cpu"), folder / "sft")
    training = task_training(
        base,
        target,
        language="aa",
        recipe=project.recipes["length"],
        sources={"aa": folders["aa"]},
        method="stride",
        details={"objective": "length"},
    )
    task = train_sft(base, training, folder=tmp_path / "task", device="cpu")
    folders["length"] = save_sft(task, tmp_path / "task" / "sft")
    assert all((diff.indices % 2 == 0).all() for diff in task.diffs.values())

    language = load_sft(folders["bb"])
    objective = objective_of(target, base, project.recipes["length"].max_length)
    rows = labelled_rows(target, target.test["bb"])
    scorer = Scorer(base, objective, MaskedLM(base.tokenizer), precision="fp32", device="cpu")
    score = scorer.score(
        CellData(objective.examples(rows), [], [], majority=None), language=language, tasks=[task], source=None
    )
    assert score.metrics["score"] > 0.9

    parts = []
    for kind, name in (("language", "bb"), ("task", "length")):
        sha256 = read_manifest(folders[name])["tensor_file"]["sha256"]
        parts.append(ComposedPart(kind=kind, subject=f"{kind} {name}", key="0" * 64, sha256=sha256, run_id="run"))
    composition = Composition(
        language="bb", target_task="length", objective="length", labels=task.labels, max_length=16,
        base=ComposedBase.model_validate({**base.ref.identity, "location": "base"}), parts=tuple(parts),
    )  # fmt: skip

    class Shelf:
        def live(self) -> dict[Slot, Release]:
            return {composition.slot: Release(1, composition)}

        def fetch(self, part: ComposedPart) -> Path:
            return folders[part.subject.partition(" ")[2]]

    limits = Limits(refresh_seconds=3600)
    service = Service(Engine(base, limits=limits), Shelf(), limits=limits, metrics=Metrics())
    service.start()
    try:
        client = TestClient(create_app(service))
        answer = client.post("/v1/length/bb", json={"inputs": [{"text": row.text} for row in rows]})
        schema = client.get("/openapi.json").json()
    finally:
        service.close()
    assert answer.status_code == 200, answer.text
    answers = [result["is_long"] for result in answer.json()["results"]]
    outcomes = [float(given == row.is_long) for given, row in zip(answers, rows, strict=True)]
    assert outcomes == score.outcomes[0][:, 0].tolist(), "what is served answers as it was scored"
    assert "is_long" in str(schema["components"]["schemas"]["Result"])
    assert type(model_of(base, task)).__name__ == "BertForSequenceClassification"


def test_a_setting_of_a_method_from_outside_is_checked_as_any_other(outside: ModuleType, project_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipes\.length\.stride: .* greater than or equal to 1, got 0"):
        load_project(project_file, overrides=["methods.stride.recipes.length.stride=0"])
    with pytest.raises(ConfigError, match=r"recipes\.language\.stride: lt_sft has no such setting, got 2"):
        load_project(project_file, overrides=["methods.lt_sft.recipes.language.stride=2"])
