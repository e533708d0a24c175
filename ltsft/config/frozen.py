"""The base of all config objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["Frozen"]


class Frozen(BaseModel):
    """Base of all config objects: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse yes and no where text or a number is due, which pydantic takes for 1 and 0."""
        inside = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        )
        if any(isinstance(item, bool) for item in inside):
            annotation = str(cls.model_fields[info.field_name or ""].annotation)
            if "bool" not in annotation and "Any" not in annotation:
                raise ValueError("yes, no, true and false are no text and no number; put text in quotes")
        return value
