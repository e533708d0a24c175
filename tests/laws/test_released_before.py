"""A model that was released before the modules moved into packages is loaded and asked.

`released_before/` holds what a release left behind at version 0.1.0: the logged model with its copy of
`composed_model.py`, the two SFTs that it names, and the base. Its copy imports `ltsft.errors`, `ltsft.release.release`,
`ltsft.serving.answers` and `ltsft.serving.offline`: these paths are promises.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import ltsft
from ltsft.objectives.biaffine import load_parser

pytestmark = pytest.mark.integration
BEFORE = Path(__file__).with_name("released_before")


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model in a new MLflow, with the SFTs that it names; runs have other ids there, as after any import."""
    from mlflow import MlflowClient

    from tasks.tracking.database import create_sqlite

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    create_sqlite(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("LTSFT_BASE", str(BEFORE / "base"))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("before", artifact_location=str(tmp_path / "artifacts"))
    model = shutil.copytree(BEFORE / "model", tmp_path / "model")
    recipe = model / "artifacts" / "composition.json"
    text = recipe.read_text(encoding="utf-8")
    for folder in sorted((BEFORE / "sfts").iterdir()):
        run_id = client.create_run(experiment).info.run_id
        client.log_artifacts(run_id, str(folder), "sft")
        text = text.replace(folder.name, run_id)
    recipe.write_text(text, encoding="utf-8")
    return model


def test_a_model_released_before_the_packages_loads_and_answers_as_it_did(released: Path) -> None:
    import mlflow.pyfunc

    answers = json.loads((BEFORE / "answers.json").read_text(encoding="utf-8"))
    loaded = mlflow.pyfunc.load_model(str(released))
    found = loaded.predict(pd.DataFrame({"text": [row["text"] for row in answers]}))
    assert [list(labels) for labels in found["labels"]] == [row["labels"] for row in answers]
    for scores, row in zip(found["scores"], answers, strict=True):
        assert list(scores) == pytest.approx(row["scores"], abs=1e-4)


def test_what_is_logged_now_imports_public_names_alone_and_names_its_version(tmp_path: Path) -> None:
    from tasks.releases.pyfunc import save_pyfunc

    spec = importlib.util.find_spec("tasks.releases.composed_model")
    assert spec is not None
    code = Path(str(spec.origin))
    save_pyfunc(
        tmp_path / "model",
        code=code,
        artifacts={},
        example=[{"text": "a"}],
        inputs={"text": str},
        outputs={"labels": [str]},
        metadata={},
    )
    assert f"ltsft=={ltsft.__version__}" in (tmp_path / "model" / "requirements.txt").read_text(encoding="utf-8")
    imports = [
        node for node in ast.walk(ast.parse(code.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    ours = {str(node.module): {alias.name for alias in node.names} for node in imports if is_ours(str(node.module))}
    assert ours.keys() == {"ltsft"}
    assert ours["ltsft"] <= set(ltsft.__all__)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("ltsft", "tasks", "flows")


def test_a_parser_exported_before_is_loaded_by_the_name_that_its_card_gives() -> None:
    assert load_parser is ltsft.load_parser
