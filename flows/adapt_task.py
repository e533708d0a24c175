"""Learn a target task: validate the labelled data, learn the task SFT over the source language's, measure it, store it.

Reads labelled data, the base and the source language's SFT; writes one MLflow run with the SFT, its metrics and the
validation report. Locally: ``ltsft run PROJECT`` starts it for each task SFT that is not up to date.
"""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from ltsft.project import ProjectRef, task_subject
from tasks.orchestration import ends_in_words
from tasks.training import store_sft, train_task_sft
from tasks.validation import validate_target_task
from tasks.workspace import open_workspace


@flow(name="adapt-task", flow_run_name="adapt-task {target_task} {language} seed {seed}", validate_parameters=True)
@ends_in_words
def adapt_task(project: ProjectRef, target_task: str, language: str, seed: int) -> str:
    """Learn a task SFT from the labelled data of a language, unless it is up to date; give the id of its MLflow run."""
    workspace = open_workspace(project)
    step = workspace.plan.step(task_subject(target_task, language, seed))
    target = workspace.project.target_tasks[target_task]
    data = target.labelled(language)
    for need in step.product.needs:
        workspace.made(need)
    with workspace.claim(step.product.key, step.product.subject) as existing:
        if existing is not None:
            get_run_logger().info("%s is up to date", step.product.subject)
            return existing
        with workspace.open_run(step, recipe=dict(step.product.parts["recipe"])) as run:
            validate_target_task(workspace, target, data, step, run)
            folder = train_task_sft(workspace, target, data, step, run)
            store_sft(workspace, step, run, folder)
            return run.run_id
