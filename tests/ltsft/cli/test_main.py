"""The `ltsft` command: what it prints, what it writes, and one clear message where something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from transformers import AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

from ltsft.base import load_base
from ltsft.cli.main import app
from ltsft.composition.compose import composed
from ltsft.project.project import ProjectRef
from ltsft.sft.files import load_sft

Call = Callable[..., Result]


@pytest.fixture
def call() -> Call:
    """Call the command; nothing but SystemExit may come out of it."""

    def run(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def sft_folders(finished_project: Path) -> dict[str, Path]:
    """The SFT folders of the finished project by subject."""
    from tasks.workspace.workspace import open_workspace

    workspace = open_workspace(ProjectRef(file=str(finished_project)))
    steps = [step for step in workspace.plan.steps if step.product.kind != "cell"]
    return {s.product.subject: workspace.tracker.download(str(s.run_id), "sft") for s in steps}


def test_plan_lists_every_product_with_the_reason(call: Call, tiny_project: Path) -> None:
    result = call("plan", tiny_project)

    assert result.exit_code == 0
    assert "language aa" in result.stdout
    assert "new" in result.stdout
    assert "7 of 7 products are to be made" in result.stdout
    assert "time: not known yet: nothing of this kind has been made here" in result.stdout


@pytest.mark.integration
def test_sfts_lists_each_sft_with_a_folder_that_inspect_takes(
    call: Call, finished_project: Path, sft_folders: dict[str, Path]
) -> None:
    lines = call("sfts", finished_project).stdout.splitlines()
    rows = json.loads(call("sfts", finished_project, "--json").stdout)

    assert [row["subject"] for row in rows] == sorted(sft_folders)
    assert {row["subject"]: Path(row["folder"]) for row in rows} == sft_folders
    assert [line.split()[-1] for line in lines] == [row["folder"] for row in rows]
    assert call("inspect", rows[0]["folder"]).exit_code == 0


def test_sfts_of_a_project_that_has_none_says_how_to_make_them(call: Call, tiny_project: Path) -> None:
    result = call("sfts", tiny_project)

    assert result.exit_code == 2
    assert "no SFT has been learnt yet; make them with: ltsft run" in result.stderr


def test_plan_as_json_is_data_and_nothing_else(call: Call, tiny_project: Path) -> None:
    result = call("plan", tiny_project, "--json", "--set", "recipes.pos.seeds=[1, 2]")

    rows = json.loads(result.stdout)
    assert [row["product"] for row in rows if row["kind"] == "task"] == ["task pos aa seed 1", "task pos aa seed 2"]
    assert all(row["reasons"] == ["new"] and not row["up_to_date"] for row in rows)


@pytest.mark.integration
def test_run_of_what_is_up_to_date_starts_no_prefect_and_prints_the_matrix(
    call: Call, finished_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltsft.cli.main.run_flow", lambda *_, **__: pytest.fail("a flow was started"))

    result = call("run", finished_project)

    assert result.exit_code == 0
    assert "Language bb" in result.stdout
    assert "artificial languages" in result.stdout
    assert f"Report:  {finished_project.parent / 'store' / 'report.html'}" in result.stdout
    assert "mlflow ui --backend-store-uri sqlite:///" in result.stdout
    assert "±" not in result.stdout, "one seed has no deviation"

    rows = json.loads(call("run", finished_project, "--json").stdout)["cells"]
    assert {row["language"] for row in rows} == {"aa", "bb", "cc"}
    assert all(0 < row["score"] <= 1 for row in rows)


@pytest.mark.integration
def test_run_of_what_fails_prints_the_matrix_says_why_and_exits_with_1(call: Call, changeable_project: Path) -> None:
    text = changeable_project.parent / "data" / "bb.txt"
    text.write_text("это другой алфавит\n" * 3)

    result = call("run", changeable_project)

    assert result.exit_code == 1
    assert "no score (1)" in result.stdout
    assert "failed: 2 of 8 products could not be made" in result.stderr
    assert "language bb: the data did not pass the validation gate" in result.stderr
    assert "Traceback" not in result.stderr


def test_prefect_being_away_is_told_in_one_message(
    call: Call, tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to reach API at http://127.0.0.1:9/api")

    monkeypatch.setattr("flows.retrain.retrain", unreachable)

    result = call("run", tiny_project)

    assert result.exit_code == 2
    assert "Prefect cannot be used: RuntimeError: Failed to reach API" in result.stderr.replace("\n", " ")
    assert "PREFECT_API_URL" in result.stderr


def test_ctrl_c_is_told_in_one_line_with_the_exit_code_of_shells(
    call: Call, tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.retrain.retrain", stopped)

    result = call("run", tiny_project)

    assert result.exit_code == 130
    assert result.stderr == "ltsft: stopped; what is done is kept, and the same command goes on from there\n"


@pytest.mark.integration
def test_inspect_shows_what_an_sft_is(call: Call, sft_folders: dict[str, Path]) -> None:
    result = call("inspect", sft_folders["task pos aa seed 1"])

    assert result.exit_code == 0
    assert "NOUN, VERB, ADJ, PUNCT" in result.stdout
    assert "attention.self.query.weight" in result.stdout

    data = json.loads(call("inspect", sft_folders["language bb"], "--json").stdout)
    assert data["manifest"]["kind"] == "language"
    assert data["sparsity"]


@pytest.mark.integration
def test_compare_shows_every_pair(call: Call, sft_folders: dict[str, Path]) -> None:
    folders = [sft_folders[name] for name in ("language aa", "language bb", "task pos aa seed 1")]

    shown = call("compare", *folders).stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:3]] == [["aa", "bb"], ["aa", "pos"]]
    assert max(map(len, shown[:4])) <= 80
    assert shown[-1] == f"pos: {folders[2]}"
    rows = json.loads(call("compare", *folders, "--json").stdout)
    assert [(row["a"], row["b"]) for row in rows] == [
        (str(a), str(b)) for a, b in ((folders[0], folders[1]), (folders[0], folders[2]), (folders[1], folders[2]))
    ]


@pytest.mark.integration
@pytest.mark.parametrize("weight", ["", "@0.5"])
def test_compose_writes_a_folder_that_anything_can_load_with_the_same_logits(
    call: Call, sft_folders: dict[str, Path], tiny_base: Path, tmp_path: Path, weight: str
) -> None:
    out = tmp_path / "composed"
    language, target = sft_folders["language bb"], sft_folders["task pos aa seed 1"]

    result = call("compose", f"{language}{weight}", target, "--base", tiny_base, "--out", out)

    assert result.exit_code == 0, result.stderr
    tokens = AutoTokenizer.from_pretrained(out)("bako kato .", return_tensors="pt")
    exported = AutoModelForTokenClassification.from_pretrained(out).eval()
    base = load_base(str(tiny_base))
    task = load_sft(target)
    model = base.token_classifier(task.labels, seed=0).eval()
    parts = [(load_sft(language), float(weight[1:] or 1)), (task, 1.0)]
    with torch.no_grad(), composed(model, parts, base=base.ref):
        expected = model(**{n: t for n, t in tokens.items() if n != "token_type_ids"}).logits
        got = exported(**{n: t for n, t in tokens.items() if n != "token_type_ids"}).logits
    assert torch.equal(got, expected)
    assert exported.config.id2label == dict(enumerate(task.labels))


def test_convert_turns_a_reference_sft_into_a_folder(call: Call, tiny_base: Path, tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.bias"
    diff = {"size": torch.Size([32]), "index_steps": [np.int64(3), 4], "values": torch.tensor([0.5, -1.0])}
    torch.save({"diffs": {name: diff}, "abs": {}}, tmp_path / "pytorch_diff.bin")

    result = call("convert", tmp_path, tmp_path / "ours", "--base", tiny_base, "--kind", "language", "--subject", "fo")

    assert result.exit_code == 0, result.stderr
    assert "K = 2" in result.stdout
    assert load_sft(tmp_path / "ours").subject == "fo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "{tmp}/none.yaml"], "there is no project file"),
        (["run", "{tmp}/none.yaml"], "there is no project file"),
        (["run", "{project}", "--set", "recipes.language.densty=0.1"], "recipes.language.densty: unknown key"),
        (["run", "{project}", "--set", "no equals sign"], "an override is dotted.path=value"),
        (["run", "{project}", "--base", "{tmp}/nowhere"], "nowhere"),
        (["plan", "{project}", "--data-root", "/nowhere"], "data_root: there is no folder /nowhere, in which"),
        (["inspect", "{tmp}"], "{tmp}"),
        (["inspect", "{tmp}/none"], "{tmp}/none"),
        (["compare", "{tmp}"], "compare takes two SFT folders or more, got 1"),
        (["compose", "{tmp}@heavy", "--base", "{base}", "--out", "{tmp}/out"], "must be a number, or name=number"),
        (["compose", "{tmp}", "--base", "{base}", "--out", "{tmp}/out"], "{tmp}"),
        (["compose", "{tmp}", "--base", "{tmp}/nowhere", "--out", "{tmp}/out"], "{tmp}"),
        (["convert", "{tmp}", "{tmp}/out", "--base", "{base}", "--kind", "x", "--subject", "fo"], "language or task"),
        (["convert", "{tmp}", "{tmp}/out", "--base", "{base}", "--kind", "task", "--subject", "x"], "pytorch_diff.bin"),
        (["bootstrap", "{project}", "--pool-limit", "ltsft-gpu=many"], "give name=number, got 'ltsft-gpu=many'"),
        (["bootstrap", "{project}", "--pool-limit", "ltsft-gpu=[1]"], "give name=number"),
        (["bootstrap", "{project}", "--job-variable", "image"], "give name=value, got 'image'"),
        (["plan", "{tmp}"], "is a folder; name the project file in it"),
        (["plan", "{project}", "--data-root", "~nosuch/data"], "data_root: '~nosuch/data' is no folder"),
        (["plan", "{project}", "--set", "name=2024-13-45"], "is no valid timestamp"),
        (["plan", "{project}", "--set", "store.folder=a?b"], "store.folder: an address of MLflow cannot hold ?"),
        (["plan", "{project}", "--method", ""], "method: there is no method ''"),
        (
            ["sweep-density", "{project}", "--language-densities", "x", "--task-densities", "1"],
            "give numbers with commas",
        ),
        (["serve", "--project", "{tmp}"], "is a folder"),
        (["nonsense"], "No such command"),
    ],
)
def test_what_is_wrong_is_told_in_one_message_without_traceback(
    call: Call, tiny_project: Path, tiny_base: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"tmp": tmp_path, "project": tiny_project, "base": tiny_base}

    result = call(*(argument.format(**places) for argument in arguments))

    assert result.exit_code == 2
    assert message.format(**places) in result.stderr.replace("\n", "")
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_compose_refuses_sfts_of_another_base(call: Call, tiny_project: Path, tiny_base: Path, tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.bias"
    diff = {"size": torch.Size([32]), "index_steps": [3], "values": torch.tensor([0.5])}
    torch.save({"diffs": {name: diff}, "abs": {}}, tmp_path / "pytorch_diff.bin")
    call("convert", tmp_path, tmp_path / "ours", "--base", tiny_base, "--kind", "language", "--subject", "fo")
    manifest = tmp_path / "ours" / "sft.json"
    assert manifest.is_file()
    model = load_base(str(tiny_base)).masked_lm()
    with torch.no_grad():
        next(model.base_model.parameters())[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "other")

    result = call("compose", tmp_path / "ours", "--base", tmp_path / "other", "--out", tmp_path / "out")

    assert result.exit_code == 2
    assert "base" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_installed_command_runs_and_keeps_standard_output_for_data(
    call: Call, tiny_project: Path, tmp_path: Path
) -> None:
    command = Path(sys.executable).with_name("ltsft")
    if not command.is_file():
        pytest.skip("the package is not installed: there is no ltsft command beside python")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    assert call("plan", tiny_project).exit_code == 0  # from now on the fingerprints of the base are known
    store = yaml.safe_load(tiny_project.read_text())["store"]["folder"]
    (Path(store) / "mlflow.db").unlink()
    relative = os.path.relpath(store, tmp_path)

    done = subprocess.run(
        [command, "plan", tiny_project, "--json", "--set", f"store.folder={relative}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 7
    assert (Path(store) / "mlflow.db").is_file(), "what the command line names starts from the working folder"
    assert not imported(done.stderr) & {"transformers", "prefect", "great_expectations", "datasets", "matplotlib"}


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_what_needs_no_project_waits_for_no_library(asked: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ltsft.cli", asked],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TERM": "dumb"},
    )

    assert re.search(r"compare-methods" if asked == "--help" else r"^ltsft \d", done.stdout)
    loaded = imported(done.stderr)
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "prefect", "mlflow", "pydantic", "yaml", "tasks", "flows"}


def imported(told: str) -> set[str]:
    """The packages that Python says it imported."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines() if "|" in line}
