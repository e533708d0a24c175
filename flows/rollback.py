"""Roll a release back: move the alias to the version before, and write down who did it, when and why.

Reads the record of releases; writes the alias ``champion`` and one MLflow run. Nothing is loaded or measured, so that
it takes effect as soon as the servers look. Locally: ``ltsft rollback LANGUAGE TARGET_TASK``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from ltsft.project import ProjectRef
from ltsft.release import Slot
from tasks.orchestration import ends_in_words
from tasks.releases import roll_back
from tasks.workspace import open_workspace


@flow(name="rollback", flow_run_name="rollback {target_task} {language}", validate_parameters=True)
@ends_in_words
def rollback(
    project: ProjectRef, language: str, target_task: str, to: str | None = None, reason: str = "", who: str = ""
) -> State[Any]:
    """Go back to the version that was live before.

    Args:
        project: the project.
        language: of the release.
        target_task: of the release.
        to: a version that was live once, or ``none`` to take the release out of service.
        reason: why, for the record.
        who: the user, for the record; the one of the process without it.

    Returns:
        Completed, saying which version is live.
    """
    slot = Slot(language, target_task)
    before, after = roll_back(open_workspace(project, needs_data=False), slot, to=to, reason=reason, who=who)
    now = "nothing is live any more" if after is None else f"version {after} is live"
    return Completed(message=f"{slot}: {now} (version {before} was)")
