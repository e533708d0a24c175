"""How a project file names a data source: ``scheme:location``. What lies there is for ``ltsft/data/sources.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from ltsft.config.frozen import Frozen

SCHEMES = ("text", "conllu", "conll", "tsv", "csv", "jsonl", "parquet", "hf")
HUB_OPTIONS = ("split", "name", "revision")


class MissingDataError(ValueError):
    """A local file or folder of data is not there; `location` says where it was looked for."""

    def __init__(self, kind: str, location: str, root: str) -> None:
        super().__init__(f"there is no {kind} {location}; mend the path or set data_root (now {root})")
        self.location = location


class Source(Frozen):
    """A named data source: ``scheme:location``, and optionally where a missing local file comes from.

    In YAML either a string (``text:text/fo.txt.gz``, ``conllu:https://host/file.conllu``) or a mapping
    ``{file: "text:text/fo.txt.gz", origin: "https://host/fo.txt.gz"}``. What lies on the hub is named by its id, split,
    configuration and commit: ``hf:OWNER/NAME?split=train&name=es&revision=COMMIT``; a folder of data files as
    ``hf:./FOLDER?split=train``.
    """

    scheme: str
    location: str
    origin: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            value = {"file": value}
        if not isinstance(value, Mapping) or "file" not in value:
            return value
        unknown = set(value) - {"file", "origin"}
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}; allowed are file and origin")
        scheme, separator, location = str(value["file"]).partition(":")
        if not separator or scheme not in SCHEMES or not location:
            allowed = ", ".join(f"{s}:" for s in SCHEMES)
            raise ValueError(f"a source is scheme:location with one of the schemes {allowed}, got {value['file']!r}")
        context = info.context or {}
        root = context.get("data_root", "")
        if scheme == "hf":
            return {"scheme": scheme, "location": _hub_location(location, root, context), "origin": None}
        location = _join(root, location)
        is_missing = "://" not in location and value.get("origin") is None and not _is_there(location, Path.is_file)
        if context.get("check_files") and is_missing:
            raise MissingDataError("file", location, root)
        return {"scheme": scheme, "location": location, "origin": value.get("origin")}

    @property
    def is_remote(self) -> bool:
        """Whether the location is a URL or a data set of the hub rather than a local path."""
        return "://" in self.location or (self.scheme == "hf" and not self.location.startswith("/"))

    def __str__(self) -> str:
        return f"{self.scheme}:{self.location}"


def _is_there(location: str, looks: Callable[[Path], bool]) -> bool:
    """Look for a file or folder.

    Raises:
        ValueError: the system refuses to look: a name that is too long, a folder that may not be entered.
    """
    try:
        return looks(Path(location))
    except OSError as error:
        raise ValueError(f"{location[:200]}: {error.strerror}") from error


def _join(root: str, location: str) -> str:
    if "://" in location or location.startswith("/"):
        return location
    if "://" in root:
        return f"{root.rstrip('/')}/{location}"
    return str(Path(root, location).absolute())


def _hub_location(location: str, root: str, context: Mapping[str, Any]) -> str:
    """Check what names a data set of the hub, or a folder of data files, and put its options in order."""
    path, _, query = location.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in HUB_OPTIONS:
            raise ValueError(f"unknown option {name!r} of hf:; allowed are {', '.join(HUB_OPTIONS)}")
    if not options.get("split"):
        raise ValueError(f"hf: needs a split, such as hf:{path}?split=train")
    if path.startswith(("/", "./", "../")):
        path = _join(root, path)
        if context.get("check_files") and not _is_there(path, Path.is_dir):
            raise MissingDataError("folder", path, root)
    elif not re.fullmatch("[0-9a-f]{40}", options.get("revision", "")):
        raise ValueError(
            "a data set of the hub is named with the commit that it is read at, as &revision= and 40 hex digits; "
            "data that may change have no key; a folder starts with ./"
        )
    return f"{path}?{urlencode({name: options[name] for name in HUB_OPTIONS if name in options})}"


def as_list(value: Any) -> Any:
    """Put a single value into a list, so that a project file may leave out the brackets."""
    return value if isinstance(value, (list, tuple)) else [value]


Sources = Annotated[tuple[Source, ...], BeforeValidator(as_list), Field(min_length=1)]
