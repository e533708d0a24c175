"""Where the lists of words are that tell which language a text is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from ltsft.config.frozen import Frozen

__all__ = ["WordLists"]


class WordLists(Frozen):
    """Lists of words that occur mostly in one language: a file ``NAME.txt`` or ``NAME.txt.gz`` each, a word a line.

    Attributes:
        folder: folder or URL that holds them, relative to ``data_root``.
        names: language code -> the name of its list, such as ``fo: fao_Latn``; a language without one is not looked at.
        sisters: language code -> lists of languages that its text may hold, because they share most of their words.
    """

    folder: str = Field(min_length=1)
    names: dict[str, str] = Field({})
    sisters: dict[str, tuple[str, ...]] = Field({})

    @field_validator("folder")
    @classmethod
    def _placed(cls, folder: str, info: ValidationInfo) -> str:
        context: dict[str, Any] = info.context or {}
        root = context.get("data_root", "")
        if "://" in folder or folder.startswith("/"):
            place = folder
        elif "://" in root:
            place = f"{root.rstrip('/')}/{folder}"
        else:
            place = str(Path(root, folder).absolute())
        if context.get("check_files") and "://" not in place and not Path(place).is_dir():
            raise ValueError(f"there is no folder {place}; mend the path or set data_root")
        return place
