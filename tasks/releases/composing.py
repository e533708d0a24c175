"""From a scored cell to a composition, and from a composition to a logged model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltsft.errors import ReleaseError
from ltsft.methods import method_named
from ltsft.objectives import OBJECTIVES
from ltsft.project import Step, cell_subject, language_subject, task_subject
from ltsft.release import ComposedBase, ComposedPart, Composition, Slot
from ltsft.serving import reader_class
from ltsft.sft import read_manifest
from ltsft.training import labelled_rows
from tasks.releases.pyfunc import save_pyfunc
from tasks.releases.registry import MODEL
from tasks.tracking import RunHandle
from tasks.workspace import SFT_FOLDER, Workspace

COMPOSITION_FILE = "composition.json"
EXAMPLE_ROWS = 3


def scored_step(workspace: Workspace, slot: Slot) -> Step:
    """Give the step of a cell that is scored.

    Raises:
        ConfigError: the project has no such cell.
        ReleaseError: it is not up to date.
    """
    step = workspace.plan.step(cell_subject(slot.target_task, slot.language))
    if not step.is_up_to_date:
        raise ReleaseError(
            f"{step.product.subject} is not scored yet ({'; '.join(step.reasons)}); ltsft run makes and scores it"
        )
    return step


def compose_recipe(workspace: Workspace, slot: Slot) -> Composition:
    """Write the recipe of what would be released now: the language's SFT, if any, and the task SFT of the first seed.

    Raises:
        ConfigError: the project has no such cell.
        ReleaseError: it is not scored yet, or is of an objective or a method that cannot be served.
    """
    method = method_named(workspace.project.method)
    if method.is_stacked:
        raise ReleaseError(
            f"{slot}: method {method.name} puts modules beside the weights, which a server and an ordinary model do "
            "not have: it can be scored, and neither released, exported nor served; choose another one with --method"
        )
    scored_step(workspace, slot)
    target = workspace.project.target_tasks[slot.target_task]
    reader_class(target.objective)
    recipe = workspace.project.recipes[target.name]
    settings = workspace.project.composition
    weights = settings.weights_of(slot.language)
    has_languages = method.has_languages
    subjects = {
        **({language_subject(slot.language): weights.language} if has_languages else {}),
        task_subject(target.name, target.source_name, recipe.seeds[0]): weights.task if has_languages else 1.0,
    }
    return Composition(
        language=slot.language,
        target_task=slot.target_task,
        objective=target.objective,
        labels=OBJECTIVES[target.objective].label_set(target),
        max_length=recipe.max_length,
        takes_pairs="pair" in target.columns,
        base=ComposedBase.model_validate({**workspace.base.ref.identity, "location": _location(workspace.base.id)}),
        rule=settings.rule,
        parts=tuple(_part(workspace, subject, weight) for subject, weight in subjects.items()),
    )


def log_model(workspace: Workspace, composition: Composition, run: RunHandle) -> None:
    """Log the pyfunc model of a composition with its run."""
    reader = reader_class(composition.objective)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, COMPOSITION_FILE)
        recipe.write_text(composition.to_json(), encoding="utf-8")
        model = Path(folder, MODEL)
        with workspace.tracker.service("write a model"):
            save_pyfunc(
                model,
                code=Path(__file__).with_name("composed_model.py"),
                artifacts={"composition": str(recipe)},
                example=_example(workspace, composition.slot),
                inputs=reader.inputs,
                outputs=reader.outputs,
                metadata={"composition": composition.key, "base_fingerprint": composition.base.fingerprint},
            )
        run.log_folder(model, MODEL)


def parents(composition: Composition) -> str:
    """Name what a composition is made from, with the runs."""
    return ", ".join(f"{part.subject}: {part.run_id}" for part in composition.parts)


def _example(workspace: Workspace, slot: Slot) -> list[dict[str, Any]]:
    """Give some rows of the test set as people would ask them: words as a text."""
    target = workspace.project.target_tasks[slot.target_task]
    reader = reader_class(target.objective)
    asked = [reader.asked(row) for row in labelled_rows(target, target.test[slot.language])]
    return [
        {"text": " ".join(item.words)} if item.words is not None else item.as_row() for item in asked[:EXAMPLE_ROWS]
    ]


def _part(workspace: Workspace, subject: str, weight: float | dict[str, float]) -> ComposedPart:
    step = workspace.plan.step(subject)
    run_id = workspace.made(subject)
    manifest: Mapping[str, Any] = read_manifest(workspace.tracker.download(run_id, SFT_FOLDER))
    kind = "language" if step.product.kind == "language" else "task"
    return ComposedPart(
        kind=kind,
        subject=subject,
        key=step.product.key,
        sha256=manifest["tensor_file"]["sha256"],
        run_id=run_id,
        weight=weight,
    )


def _location(base: str) -> str:
    return str(Path(base).absolute()) if Path(base).is_dir() else base
