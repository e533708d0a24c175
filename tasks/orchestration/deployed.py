"""How deployments are found: by their flow and their project, and by their tags."""

from __future__ import annotations

TAG = "ltsft"
"""Of every deployment of ours, and so of its runs."""


def project_tag(project: str) -> str:
    """Give the tag of what belongs to a project of this name."""
    return f"project:{project}"


def deployment_name(flow: str, project: str) -> str:
    """Give the full name of a project's deployment of a flow, such as ``retrain/ud``."""
    return f"{flow}/{project}"
