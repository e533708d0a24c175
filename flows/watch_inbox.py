"""Watch the inbox: find languages whose text is new or changed, and emit one event for each, once.

Reads the listing of the inbox in the bucket that ``LTSFT_BUCKET`` names; writes what it noticed there, and events to
Prefect. The deployment of `onboard_language` starts on such an event.
"""

from __future__ import annotations

import pydantic
from prefect import flow
from prefect.logging import get_run_logger

from ltsft.errors import ConfigError
from ltsft.project import ProjectRef
from tasks.arrivals import announce, mark_announced, notice
from tasks.orchestration import ends_in_words
from tasks.settings import read_settings
from tasks.workspace import open_workspace


@flow(name="watch-inbox", flow_run_name="watch-inbox {project.file}", validate_parameters=True)
@ends_in_words
def watch_inbox(project: ProjectRef, quiet_seconds: pydantic.NonNegativeFloat | None = None) -> list[str]:
    """Look into the inbox once.

    Args:
        project: the project.
        quiet_seconds: an upload counts as finished when the language's newest file is so old; without it
            ``LTSFT_QUIET_SECONDS``, five minutes by default.

    Returns:
        The codes of the languages that were announced.
    """
    workspace = open_workspace(project)
    if workspace.bucket is None:
        raise ConfigError("there is no inbox to watch; set LTSFT_BUCKET to s3://bucket or s3://bucket/prefix")
    if quiet_seconds is None:
        quiet_seconds = read_settings().quiet_seconds
    arrivals = notice(workspace.bucket, known=project.load().languages, quiet_seconds=quiet_seconds)
    for arrival in arrivals:
        announce(project, workspace.project.name, arrival)
        mark_announced(workspace.bucket, arrival)
        get_run_logger().info("%s: text has arrived (%d files)", arrival.code, len(arrival.text))
    return [arrival.code for arrival in arrivals]
