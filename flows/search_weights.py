"""Search weights: score a small grid of composition settings on held-out data of languages that have some.

Reads SFTs that exist and dev data, never a test set; writes one MLflow run with the table. Nothing is trained and no
setting is changed: what it finds is for the project file. Locally: ``ltsft search-weights PROJECT``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ltsft.experiments import grid_of
from ltsft.project import ProjectRef
from tasks.evaluation import chosen_tasks, search
from tasks.orchestration import ends_in_words
from tasks.workspace import open_workspace


@flow(name="search-weights", flow_run_name="search-weights {project.file}", validate_parameters=True)
@ends_in_words
def search_weights(
    project: ProjectRef,
    language_weights: list[float],
    task_weights: list[float],
    rules: list[str],
    target_task: str | None = None,
) -> State[Any]:
    """Score every setting of a grid.

    Args:
        project: the project; its SFTs have to exist.
        language_weights: of the language SFT.
        task_weights: of the task SFT.
        rules: composition rules.
        target_task: only this one.

    Returns:
        Completed with a table for each target task.
    """
    workspace = open_workspace(project)
    settings = grid_of(rules, language_weights, task_weights)
    told = [search(workspace, target, settings).text() for target in chosen_tasks(workspace.project, target_task)]
    return Completed(message="\n".join(told))
