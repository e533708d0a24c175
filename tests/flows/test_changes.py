"""What a change makes stale, as the plan of a finished project tells it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
Open = Callable[[Path], Workspace]
SetValue = Callable[[Path, str, Any], None]

EVERYTHING = {
    *("language aa", "language bb", "language cc", "task pos aa seed 1", "task pos cc seed 1"),
    *("cell pos aa", "cell pos bb", "cell pos cc"),
}


def stale(workspace: Workspace) -> dict[str, str]:
    return {step.product.subject: "; ".join(step.reasons) for step in workspace.plan.stale}


def test_the_text_of_the_source_language_makes_everything_downstream_stale(
    changeable_project: Path, opened: Open
) -> None:
    text = changeable_project.parent / "data" / "aa.txt"
    text.write_text(text.read_text() + "bako bako.\n")

    found = stale(opened(changeable_project))

    assert set(found) == {"language aa", "task pos aa seed 1", "cell pos aa", "cell pos bb", "cell pos cc"}
    assert found["language aa"] == "text changed"
    assert found["task pos aa seed 1"] == "upstream changed: language aa"
    assert found["cell pos bb"] == "upstream changed: task pos aa seed 1"


def test_the_learning_rate_of_the_language_sfts_makes_everything_stale(
    changeable_project: Path, opened: Open, set_value: SetValue
) -> None:
    set_value(changeable_project, "recipes.language.sparse", {"max_steps": 12, "min_steps": 12, "learning_rate": 2e-3})

    found = stale(opened(changeable_project))

    assert set(found) == EVERYTHING
    assert found["language bb"] == "recipe changed: sparse.learning_rate 0.001 -> 0.002"


def test_the_learning_rate_of_a_task_leaves_the_language_sfts_alone(
    changeable_project: Path, opened: Open, set_value: SetValue
) -> None:
    set_value(changeable_project, "recipes.pos.full", {"max_steps": 12, "min_steps": 12, "learning_rate": 2e-3})

    found = stale(opened(changeable_project))

    assert set(found) == {name for name in EVERYTHING if not name.startswith("language")}
    assert found["task pos aa seed 1"] == "recipe changed: full.learning_rate 0.001 -> 0.002"


def test_one_changed_weight_of_the_base_makes_everything_stale(
    changeable_project: Path, opened: Open, set_value: SetValue, tmp_path: Path, tiny_base: Path
) -> None:
    other = shutil.copytree(tiny_base, tmp_path / "other-base")
    model = AutoModelForMaskedLM.from_pretrained(other)
    with torch.no_grad():
        next(model.base_model.parameters())[7, 0] += 1.0
    model.save_pretrained(other)
    set_value(changeable_project, "base.id", str(other))

    found = stale(opened(changeable_project))

    assert set(found) == EVERYTHING
    assert found["language cc"] == "base changed"


def test_a_test_set_makes_its_cell_stale(changeable_project: Path, opened: Open) -> None:
    test = changeable_project.parent / "data" / "bb-test.conllu"
    test.write_text(test.read_text() + "# one more comment\n\n")

    assert stale(opened(changeable_project)) == {"cell pos bb": "test data changed"}


def test_a_change_that_is_taken_back_is_up_to_date_again(
    changeable_project: Path, opened: Open, set_value: SetValue
) -> None:
    set_value(changeable_project, "recipes.language.density", 0.1)
    assert stale(opened(changeable_project))
    set_value(changeable_project, "recipes.language.density", 0.2)

    assert stale(opened(changeable_project)) == {}
