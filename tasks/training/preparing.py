"""What is trained, as it is told to every process that trains it: a product of a project, and the SFTs that it needs.

No Prefect and no MLflow: the processes of a training by several (tasks/training/together.py) prepare what they need
themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from ltsft.base import Base
from ltsft.config import Frozen, TargetTask
from ltsft.data import read_text
from ltsft.objectives import TargetObjective
from ltsft.project import Project
from ltsft.sft import Kind
from ltsft.training import Training, language_training, objective_of, task_training
from tasks.workspace import Workspace


class Assignment(Frozen):
    """A product of a project that is to be trained.

    Attributes:
        kind: "language" or "task".
        language: of the language SFT; for a task SFT what it is learnt from, several by their name together.
        target_task: of a task SFT.
        sources: folder of the SFT of each source language, of a task SFT.
        seed: of the training.
        details: recorded in the SFT.
    """

    kind: Kind
    language: str
    target_task: str | None = None
    sources: dict[str, Path] = Field({})
    seed: int = 0
    details: dict[str, Any] = Field({})

    def training(self, project: Project, base: Base, folder: Path) -> Training:
        """Read the data and cut it into examples.

        Args:
            project: that the product is of.
            base: its base.
            folder: of the training; packed text goes there.

        Returns:
            What `train_sft` learns.
        """
        if self.target_task is None:
            language = project.languages[self.language]
            return language_training(
                base,
                read_text(language.text, documents=True),
                language=language.code,
                recipe=project.recipes["language"],
                folder=folder,
                method=project.method,
                seed=self.seed,
                details=self.details,
            )
        return task_training(
            base,
            project.target_tasks[self.target_task],
            language=self.language,
            recipe=project.recipes[self.target_task],
            sources=self.sources,
            method=project.method,
            seed=self.seed,
            details=self.details,
        )


def target_objective(workspace: Workspace, target: TargetTask) -> TargetObjective:
    """Give the objective of a target task."""
    return objective_of(target, workspace.base, workspace.project.recipes[target.name].max_length)
