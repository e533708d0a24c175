"""Adapt the base to a language: validate its text, learn the language SFT, measure it, store it.

Reads the language's raw text and the base; writes one MLflow run with the SFT, its metrics and the validation report.
Locally: ``ltsft run PROJECT`` starts it for each language that is not up to date.
"""

from __future__ import annotations

from prefect import flow
from prefect.logging import get_run_logger

from ltsft.project import ProjectRef, language_subject
from tasks.orchestration import ends_in_words
from tasks.training import store_sft, train_language_sft
from tasks.validation import validate_language
from tasks.workspace import open_workspace


@flow(name="adapt-language", flow_run_name="adapt-language {language}", validate_parameters=True)
@ends_in_words
def adapt_language(project: ProjectRef, language: str) -> str:
    """Learn the SFT of a language, unless it is up to date; give the id of its MLflow run."""
    workspace = open_workspace(project)
    step = workspace.plan.step(language_subject(language))
    with workspace.claim(step.product.key, step.product.subject) as existing:
        if existing is not None:
            get_run_logger().info("%s is up to date", step.product.subject)
            return existing
        with workspace.open_run(step, recipe=dict(step.product.parts["recipe"])) as run:
            validate_language(workspace, workspace.project.languages[language], step, run)
            folder = train_language_sft(workspace, workspace.project.languages[language], step, run)
            store_sft(workspace, step, run, folder)
            return run.run_id
