"""An open project: its plan, the lock of a key, and what is in the making."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from ltsft.errors import ConfigError, TrainingError, ValidationError
from ltsft.project.project import ProjectRef
from tasks.evaluation.matrix import read_matrix, restore_page, write_page
from tasks.workspace.workspace import Workspace, open_workspace


@pytest.fixture
def workspace(tiny_project: Path) -> Workspace:
    return open_workspace(ProjectRef(file=str(tiny_project)))


def fail(workspace: Workspace, subject: str, reason: str) -> None:
    run = workspace.open_run(workspace.plan.step(subject))
    with pytest.raises(ValidationError), run:
        raise ValidationError(f"{subject}: {reason}\n  more about it")


def test_a_subject_that_the_project_does_not_ask_for_is_told_with_those_that_it_does(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"no product 'language xx'; allowed are 'language aa'"):
        workspace.plan.step("language xx")


def test_what_does_not_exist_yet_cannot_be_built_upon(workspace: Workspace) -> None:
    with pytest.raises(TrainingError, match="language aa does not exist yet and has to be made first"):
        workspace.made("language aa")


def test_whoever_wants_a_key_that_is_being_made_waits_and_then_finds_it(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    product = workspace.plan.step("language aa").product
    found: list[str | None] = []

    def second() -> None:
        with workspace.claim(product.key, product.subject) as existing:
            found.append(existing)

    caplog.set_level(logging.WARNING, logger="tasks.workspace.workspace")
    with workspace.claim(product.key, product.subject) as existing:
        assert existing is None
        thread = threading.Thread(target=second)
        thread.start()
        while not caplog.messages and thread.is_alive():
            time.sleep(0.01)
        assert found == []
        with workspace.open_run(workspace.plan.step("language aa")) as run:
            pass
    thread.join(timeout=30)

    assert found == [run.run_id]
    assert caplog.messages[0].startswith("language aa is being made by another run; waiting for it (key ")


def test_another_key_is_not_waited_for(workspace: Workspace) -> None:
    with workspace.claim("one", "language aa"), workspace.claim("other", "language bb") as existing:
        assert existing is None


def test_a_run_that_was_cut_off_is_gone_on_with(workspace: Workspace) -> None:
    step = workspace.plan.step("language aa")
    first = workspace.open_run(step)
    second = workspace.open_run(step)

    assert second.run_id == first.run_id
    assert second.is_resumed


def test_a_gap_says_what_could_not_be_made_at_the_root_and_why(workspace: Workspace) -> None:
    fail(workspace, "language aa", "too little text")

    reasons = {cell.language: cell.reason for cell in read_matrix(workspace).cells}

    assert reasons == {
        "aa": "language aa: too little text",
        "bb": "language bb: not made yet; language aa: too little text",
        "cc": "language cc: not made yet; language aa: too little text",
    }


def test_a_failure_with_other_data_does_not_explain_a_gap_of_today(workspace: Workspace, tiny_project: Path) -> None:
    fail(workspace, "language bb", "too little text")
    text = tiny_project.parent / "data" / "bb.txt"
    text.write_text(text.read_text() + "bako.\n")

    reopened = open_workspace(ProjectRef(file=str(tiny_project)))
    reasons = {cell.language: cell.reason for cell in read_matrix(reopened).cells}

    assert reasons["bb"] == "language bb, language aa: not made yet"
    assert "the last attempt failed: language bb: too little text" in reopened.plan.step("language bb").reasons


def test_the_same_reason_of_several_products_is_said_once(workspace: Workspace) -> None:
    told = {"language aa": "no service", "language bb": "no service"}

    reasons = {cell.language: cell.reason for cell in read_matrix(workspace, told).cells}

    assert reasons["bb"] == "language bb, language aa: no service"


def test_the_page_is_written_whole_and_only_a_reported_matrix_has_one(workspace: Workspace) -> None:
    assert restore_page(workspace, read_matrix(workspace)) is None
    page = write_page(workspace, b"<html>")

    assert page.read_bytes() == b"<html>"
    assert [file.name for file in workspace.store.glob("report*")] == ["report.html"]
