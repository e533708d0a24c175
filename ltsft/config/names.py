"""Names of languages and target tasks: what is allowed works in folders, MLflow, Prefect, Kubernetes, S3 and URLs."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

__all__ = ["NAME_RULE", "Name", "is_name"]

_LENGTH = 40
_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$"
NAME_RULE = (
    f"1 to {_LENGTH} letters and digits of ASCII, with - and _ between them (sr-Latn, zh_Hans, oodham); a dot parts "
    "names in the registry, and other signs mean something in folders, addresses or labels"
)

Name = Annotated[str, StringConstraints(pattern=_PATTERN, max_length=_LENGTH)]
"""A language code or the name of a target task."""


def is_name(text: object) -> bool:
    """Say whether this may be a language code or the name of a target task."""
    return isinstance(text, str) and len(text) <= _LENGTH and re.fullmatch(_PATTERN[1:-1], text) is not None
