"""The project file of the real run: it parses, all of it has an origin, and the labels are those of its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltsft.data.sources import read_rows, read_text
from ltsft.project.project import load_project

UD = Path(__file__).parents[2] / "configs" / "ud.yaml"


def test_every_source_of_the_ud_project_has_an_origin_of_its_own(tmp_path: Path) -> None:
    sources = load_project(UD, data_root=str(tmp_path)).all_sources().values()
    assert all(source.origin is not None and source.origin.startswith("https://") for source in sources)
    assert len({source.location for source in sources}) == len({source.origin for source in sources}) == len(sources)


def test_every_language_of_the_ud_project_is_scored(tmp_path: Path) -> None:
    project = load_project(UD, data_root=str(tmp_path))
    assert set(project.target_tasks["pos"].test) == set(project.languages)
    assert len(project.unseen) >= 10


def test_the_quick_recipe_differs_in_the_lengths_of_language_trainings_alone(tmp_path: Path) -> None:
    full, quick = (load_project(UD.with_name(f"{name}.yaml"), data_root=str(tmp_path)) for name in ("ud", "ud_quick"))
    ours, theirs = (project.recipes["language"] for project in (full, quick))
    assert ours.full.max_steps == 4 * theirs.full.max_steps  # type: ignore[operator]
    assert ours.sparse.max_steps == 4 * theirs.sparse.max_steps  # type: ignore[operator]
    assert quick.recipes["pos"] == full.recipes["pos"]
    assert (quick.languages, quick.target_tasks, quick.base) == (full.languages, full.target_tasks, full.base)


@pytest.mark.real
def test_the_ud_project_runs_on_the_shared_data(shared: Path) -> None:
    project = load_project(UD, data_root=str(shared / "data"))
    pos = project.target_tasks["pos"]
    for language, sources in pos.test.items():
        rows = [row for source in sources for row in read_rows(source)]
        assert len(rows) > 100, language
        assert {label for row in rows for label in row.upos} <= set(pos.labels), language
        assert sum(1 for _ in read_text(project.languages[language].text)) > 5000, language
