"""The project files of target tasks: what they say in their first lines, and that the real data fit them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ltsft.config.source import Source
from ltsft.config.target_task import TargetTask
from ltsft.data.labelled_measures import measure_labelled
from ltsft.objectives.registry import OBJECTIVES, read_labelled
from ltsft.project.project import load_project

CONFIGS = Path(__file__).parents[2] / "configs"
REAL = {
    "ud_dp.yaml": "dp",
    "masakhaner.yaml": "ner",
    "nusax.yaml": "classification",
    "americasnli.yaml": "classification",
}


@pytest.mark.parametrize("name", [*REAL, "language_pairs.yaml", "toy_tasks.yaml"])
def test_a_project_of_target_tasks_says_how_it_is_run_and_scores_every_language(name: str) -> None:
    project = load_project(CONFIGS / name, data_root="s3://elsewhere")
    head = (CONFIGS / name).read_text(encoding="utf-8").partition("\nname:")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert f"ltsft run configs/{name}" in head
    for target in project.target_tasks.values():
        assert set(target.test) == set(project.languages)
        assert target.source_language in target.test
        assert set(project.unseen) < set(target.test)


def test_the_toy_project_has_every_objective() -> None:
    project = load_project(CONFIGS / "toy_tasks.yaml", data_root="s3://elsewhere")
    assert {target.objective for target in project.target_tasks.values()} == set(OBJECTIVES)


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_data_pass_the_gate_of_their_project(name: str, shared: Path) -> None:
    project = load_project(CONFIGS / name, data_root=str(shared / "data"))
    (target,) = project.target_tasks.values()
    objective = OBJECTIVES[target.objective]
    assert target.objective == REAL[name]

    def sentences(sources: tuple[Source, ...]) -> list[Any]:
        return [objective.sentence(row) for row in read_labelled(target, sources)]

    for language, splits in _splits(target).items():
        read = {split: sentences(sources) for split, sources in splits.items()}
        measured = measure_labelled(
            read,
            project.gates.labelled,
            labels=objective.label_set(target),
            measures=objective.measures,
            background=objective.background,
        )
        for split, measures in measured.items():
            for field in type(project.gates.labelled).model_fields:
                bound, _, measure = field.partition("_")
                value = measures.values.get(measure)
                if value is not None and bound in ("min", "max"):
                    limit = getattr(project.gates.labelled, field)
                    assert value >= limit if bound == "min" else value <= limit, (language, split, measure)


def _splits(target: TargetTask) -> dict[str, dict[str, tuple[Source, ...]]]:
    found: dict[str, dict[str, tuple[Source, ...]]] = {}
    for language, test in target.test.items():
        data: Iterable[Any] = (target.sources.get(language), target.supervised.get(language))
        found[language] = {}
        for labelled in filter(None, data):
            found[language] |= {"train": labelled.train, **({"dev": labelled.dev} if labelled.dev else {})}
        found[language]["test"] = test
    return found
