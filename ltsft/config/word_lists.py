"""Where the lists of words are that tell which language a text is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from ltsft.config.frozen import Frozen

__all__ = ["WordLists"]


class WordLists(Frozen):
    """Lists of words that occur mostly in one language: a file ``NAME.txt`` or ``NAME.txt.gz`` each, a word a line."""

    folder: str = Field(min_length=1, description="folder or URL that holds them; a relative one starts from data_root")
    names: dict[str, str] = Field(
        {}, description="by language code, the name of its list, such as fao_Latn; one without is not looked at"
    )
    sisters: dict[str, tuple[str, ...]] = Field(
        {}, description="by language code, lists of languages that its text may hold: they share most of their words"
    )

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
