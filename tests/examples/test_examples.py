"""Every script in examples/ runs as it stands there, each on what the one before it made."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from hub_api import TOKEN, serving

from ltsft.sft.files import load_sft

EXAMPLES = Path(__file__).parents[2] / "examples"
ROOM = {
    "train_without_a_project": ["BASE"],
    "compose_and_predict": ["BASE"],
    "train_with_your_trainer": ["BASE"],
    "compare_two_sfts": ["sfts/en", "sfts/mood"],
    "push_and_load": ["sfts/en", "team/en"],
}
"""The arguments of each, in an order in which they can run."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """The hub that `huggingface_hub` talks to when it is told no other."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as address:
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield


def test_every_example_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(ROOM)


def test_the_examples_learn_compose_compare_and_push(
    hub: object, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = {}
    for name, arguments in ROOM.items():
        given = [str(tiny_base) if argument == "BASE" else argument for argument in arguments]
        monkeypatch.setattr(sys, "argv", [name, *given])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        said[name] = capsys.readouterr().out

    language, task, mood = (load_sft(tmp_path / "sfts" / name) for name in ("en", "pos", "mood"))
    assert language.support_size == task.support_size == mood.support_size == int(0.08 * language.maskable)
    assert task.source_languages == ("en",)
    assert any(bool(diff.values.any()) for diff in mood.diffs.values())
    assert all(bool(torch.isfinite(value).all()) for value in mood.head.values())
    assert {line.split()[1] for line in said["compose_and_predict"].splitlines()} <= set(task.labels)
    assert "weights in both supports" in said["compare_two_sfts"]
    assert f"support: {language.support_size:,} of" in said["push_and_load"].splitlines()[-1]
