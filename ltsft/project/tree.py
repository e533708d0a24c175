"""From the bytes of a project file to a plain tree: mappings with names, lists, text, numbers, yes and no, and nothing.

YAML can hold more (dates, sets, bytes, keys of any kind, an anchor within itself). All of that is told in one line with
its dotted path, or with its line where there is no tree yet; what is left can be changed, copied and checked in safety.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ltsft.errors import ConfigError

__all__ = ["read_tree", "read_value"]

SIZE_LIMIT_BYTES = 10 * 1024 * 1024
NODES = 200_000
"""Values in a project file, each anchor counted wherever it is used: a few lines can stand for millions."""
DEPTH = 50
_SHOWN = 20
_LARGEST = 2**63 - 1


def read_tree(path: Path) -> dict[str, Any]:
    """Read a project file.

    Returns:
        The mapping that it holds. Nothing in it is shared: a change changes one place.

    Raises:
        ConfigError: the file is missing or cannot be read, it is not YAML, or it holds what a project file cannot:
            each with its dotted path.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no project file {path}; configs/ has examples") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder; name the project file in it") from error
    except OSError as error:
        raise ConfigError(f"the project file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name that no system takes
        raise ConfigError(f"the project file {str(path)!r} cannot be read: {error}") from error
    if len(content) > SIZE_LIMIT_BYTES:
        raise ConfigError(f"{path} is larger than {SIZE_LIMIT_BYTES // 2**20} MiB, which is no project file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    value = _parsed(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a mapping with name, base, languages, target_tasks and recipes")
    problems: list[str] = []
    plain = _Plain(problems).copy(value, "", ())
    if problems:
        raise ConfigError(f"{path} has mistakes:\n" + "\n".join(f"  {problem}" for problem in problems))
    assert isinstance(plain, dict)  # noqa: S101 - what a mapping is copied to
    return plain


def read_value(text: str, place: str) -> Any:
    """Read one value in YAML, as the command line gives it.

    Args:
        text: the value.
        place: dotted path that it is for.

    Raises:
        ConfigError: it is not YAML, or it holds what a project file cannot.
    """
    if not _is_unicode(text):
        raise ConfigError(f"cannot set {place}: the value is not UTF-8")
    problems: list[str] = []
    value = _Plain(problems).copy(_parsed(text, f"cannot set {place}: {_shown(text)}"), place, ())
    if problems:
        raise ConfigError("cannot set " + "; ".join(problems))
    return value


def _parsed(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        told = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name} is not readable YAML: {' '.join(told.split())}{place}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not readable YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{name} is not readable YAML: it is nested without end") from None


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once in a mapping: of two sources of a name the first would be dropped in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                line = first[key.value].line + 1
                raise yaml.MarkedYAMLError(f"{_shown(key.value)} stands twice in a mapping, first in line {line}",
                                           None, "and again", key.start_mark)  # fmt: skip
            first[key.value] = key.start_mark
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Say where a value stands that Python cannot make: a date that there is not, a number of 5000 digits."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"{_shown(node.value)} is no valid {_tag(node)} ({error}); put it in quotes if it is text",
                problem_mark=node.start_mark,
            ) from error


class _Plain:
    """Copies a tree, without anchors, and collects what cannot be in a project file."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._nodes = 0

    def copy(self, value: Any, place: str, above: tuple[int, ...]) -> Any:
        self._nodes += 1
        if self._nodes > NODES:
            if self._nodes == NODES + 1:
                self._tell(place, f"the file stands for more than {NODES} values; use fewer anchors")
            return None
        if id(value) in above:
            self._tell(place, "an anchor stands within itself")
            return None
        if len(above) > DEPTH:
            self._tell(place, f"nested more than {DEPTH} levels deep")
            return None
        if isinstance(value, dict):
            inside = (*above, id(value))
            return {key: self.copy(item, _below(place, key), inside) for key, item in self._named(value, place)}
        if isinstance(value, list):
            inside = (*above, id(value))
            return [self.copy(item, f"{place}[{i}]", inside) for i, item in enumerate(value)]
        problem = _problem(value)
        if problem:
            self._tell(place, problem)
            return None
        return value

    def _named(self, mapping: dict[Any, Any], place: str) -> Iterator[tuple[str, Any]]:
        for key, item in mapping.items():
            problem = _name_problem(key)
            if problem:
                self._tell(place, problem)
            else:
                yield key, item

    def _tell(self, place: str, problem: str) -> None:
        if len(self._problems) < _SHOWN:
            self._problems.append(f"{place or 'at the top'}: {problem}")
        elif len(self._problems) == _SHOWN:
            self._problems.append("and more of the kind")


def _name_problem(key: Any) -> str:
    """Say why a key cannot be a name; empty if it can."""
    if not isinstance(key, str):
        told = "is not text; put it in quotes (YAML has other ideas of no, yes, on and numbers)"
        return f"the name {_shown(key)} {told}"
    if not key.strip() or len(key.splitlines()) > 1:
        return f"a name has a line and is not empty, got {_shown(key)}"
    return _problem(key)


def _problem(value: Any) -> str:
    """Say why a value that holds no others cannot be in a project file; empty if it can."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if -_LARGEST <= value <= _LARGEST else "the number is larger than any setting"
    if isinstance(value, float):
        return ""  # that it is finite is for the models to say, beside all else that is wrong
    if not isinstance(value, str):
        return f"a {type(value).__name__} cannot be here ({_shown(value)}); put it in quotes if it is text"
    if not _is_unicode(value):
        return f"half a surrogate pair is no character, in {_shown(value)}"
    if any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in value):
        return f"control characters cannot be here, in {_shown(value)}"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _shown(value: Any) -> str:
    shown = ascii(value) if not isinstance(value, str) or not _is_unicode(value) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _tag(node: Any) -> str:
    return str(node.tag).rpartition(":")[2]
