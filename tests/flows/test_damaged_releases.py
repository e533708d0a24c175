"""One release whose record is damaged hides no other one: it is named, and a rollback mends it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ltsft.cli.main import app
from ltsft.project.project import ProjectRef
from ltsft.release.release import Release, Slot, UnreadableRelease
from ltsft.serving.bundle import Bundle
from tasks.releases.composing import compose_recipe
from tasks.releases.registry import CANDIDATE, CHAMPION, COMPOSITION, LANGUAGE, PROJECT, open_registry
from tasks.releases.rollbacks import roll_back
from tasks.releases.serving import RegistrySource
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
AA, BB, CC = (Slot(code, "pos") for code in ("aa", "bb", "cc"))


@pytest.fixture
def workspace(changeable_project: Path, opened: Callable[[Path], Workspace]) -> Workspace:
    """Three releases: of aa somebody removed tags of the model, of bb the alias points nowhere, of cc a tag is gone."""
    found = opened(changeable_project)
    registry, client = open_registry(found), found.tracker.client
    for slot in (AA, BB, CC):
        composition = compose_recipe(found, slot)
        version = registry.register(composition, run_id=found.run_of(f"cell pos {slot.language}") or "", tags={})
        for alias in (CHAMPION, CANDIDATE):
            registry.set_alias(slot, alias, version.number)
    for tag in (PROJECT, LANGUAGE):
        client.delete_registered_model_tag(registry.name_of(AA), tag)
    with sqlite3.connect(found.store / "mlflow.db") as database:
        database.execute("update registered_model_aliases set version = 7 where name = ?", [registry.name_of(BB)])
    client.delete_model_version_tag(registry.name_of(CC), "1", COMPOSITION)
    return found


def test_damaged_releases_are_named_the_others_stay_and_a_rollback_mends(workspace: Workspace, tmp_path: Path) -> None:
    ref = ProjectRef(file=workspace.ref.file)
    live = RegistrySource(ref).live()
    assert isinstance(live[AA], Release)
    assert isinstance(live[BB], UnreadableRelease)
    assert isinstance(live[CC], UnreadableRelease)
    assert live[BB].version == 7
    assert "because it is not there" in live[BB].reason
    assert "has no tag ltsft.composition" in live[CC].reason

    told = CliRunner().invoke(app, ["releases", "--project", ref.file])
    assert told.exit_code == 0, told.output
    assert "pos bb: version 7 cannot be read: MLflow at" in told.stdout
    assert "ltsft rollback cc pos goes back" in told.stdout
    assert "check the tracking URI" not in told.stdout

    wrote = CliRunner().invoke(app, ["bundle", "--project", ref.file, str(tmp_path / "bundle")])
    assert wrote.exit_code == 0, wrote.output
    assert "1 releases to" in wrote.stdout
    assert "left out: pos bb version 7:" in wrote.stdout
    assert list(Bundle(tmp_path / "bundle").live()) == [AA]

    for slot, version in ((BB, 7), (CC, 1)):
        assert roll_back.fn(workspace, slot, to="none", reason="damaged", who="") == (version, None)
    assert list(RegistrySource(ref).live()) == [AA]
