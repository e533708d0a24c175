"""The page of the project file, from the classes that read it: each key, its type, default, limits and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ltsft import METHODS, Project

__all__ = ["page", "sections"]

_FROM_THE_KEY = {("Language", "code"), ("TargetTask", "name")}
"""Fields that a file does not write: they are the key under which the section stands."""

_FILLED_IN = {("", "data_root"): "the working folder", ("", "store"): "see there", ("Store", "folder"): "`work/NAME`"}
"""Defaults that reading a project file puts in before the classes see it; ``NAME`` is the name of the project."""

_IN_WORDS = {"Source": "source"}
"""What is written as text in a project file, not as a section: see the page of sources."""

_NAMES = {
    "languages": "CODE",
    "target_tasks": "TASK",
    "methods": "METHOD",
    "recipes": "NAME",
    "by_language": "CODE",
    "sources": "CODE",
    "supervised": "CODE",
}
"""What stands for the names that a user chooses."""

Schema = Mapping[str, Any]


def page() -> str:
    """Write the page as Markdown, without its title."""
    schema = Project.model_json_schema()
    parts = []
    order = list(schema["properties"])
    found = sections(schema)
    for name, paths in sorted(found.items(), key=lambda item: _place(item[1][0], order)):
        definition = schema["$defs"][name] if name else schema
        title = ", ".join(f"`{path}`" for path in paths) if name else "The file"
        rows = [_row(name, key, value, schema) for key, value in _keys(name, definition)]
        if not name:
            rows.insert(0, "| `extends` | path | none | | another project file; this one says what differs |")
        target = f"(section-{name.lower()})=\n" if name else ""
        parts.append(f"{target}## {title}\n\n{_docstring(definition)}\n\n{_table(rows)}")
    return "\n\n".join([*parts, _of_methods()])


def sections(schema: Schema) -> dict[str, list[str]]:
    """Find the sections of a project file: the class of each, and the dotted paths where it stands."""
    found: dict[str, list[str]] = {"": [""]}
    waiting = [""]
    while waiting:
        name = waiting.pop(0)
        definition = schema["$defs"][name] if name else schema
        for key, value in _keys(name, definition):
            for inner, is_named in _sections_in(value):
                steps = [found[name][0], key, _NAMES.get(key, "NAME") if is_named else ""]
                path = ".".join(step for step in steps if step)
                if inner not in found:
                    waiting.append(inner)
                if path not in found.setdefault(inner, []) and not path.startswith("methods.METHOD."):
                    found[inner].append(path)
    return found


def _place(path: str, order: list[str]) -> tuple[int, str]:
    """Put a section below its parent, and the parents as the file has them."""
    root = path.partition(".")[0]
    return (order.index(root) if root else -1, path)


def _keys(name: str, definition: Schema) -> Iterator[tuple[str, Schema]]:
    for key, value in definition.get("properties", {}).items():
        if (name, key) not in _FROM_THE_KEY and (name, key) != ("Recipe", "own"):
            yield key, value


def _sections_in(value: Schema, is_named: bool = False) -> Iterator[tuple[str, bool]]:
    """Find the classes that a value may be, and whether each stands under a name of the user's choice."""
    if "$ref" in value and (name := value["$ref"].rpartition("/")[2]) not in _IN_WORDS:
        yield name, is_named
    for option in value.get("anyOf", ()):
        yield from _sections_in(option, is_named)
    if isinstance(value.get("additionalProperties"), Mapping):
        yield from _sections_in(value["additionalProperties"], True)


def _row(name: str, key: str, value: Schema, schema: Schema) -> str:
    definition = schema["$defs"][name] if name else schema
    options = [option for option in value.get("anyOf", [value]) if option.get("type") != "null"]
    kinds = " or ".join(dict.fromkeys(_kind(option) for option in options))
    limits = "; ".join(filter(None, dict.fromkeys(_limits(option) for option in options)))
    default = "**required**" if key in definition.get("required", ()) else _default(value)
    default = _FILLED_IN.get((name, key), default)
    told = value.get("description") or _of_section(value, schema)
    cells = [f"`{key}`", kinds, default, limits, told]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(value: Schema) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return _IN_WORDS.get(name, f"[section](#section-{name.lower()})")
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if value.get("type") == "array":
        inner = _kind(value["items"])
        return f"{inner} or list" if inner == "source" else f"list of {inner}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"{_kind(inner)} by name" if isinstance(inner, Mapping) else "mapping"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    return "path" if value.get("format") == "path" else words[value["type"]]


def _limits(value: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    said = [f"{sign} {value[name]:,}" for name, sign in signs.items() if name in value]
    if "maxLength" in value:
        said.append(f"at most {value['maxLength']} characters")
    if value.get("minItems") or value.get("minProperties"):
        said.append("one at least")
    for inner in (value.get("items"), value.get("additionalProperties")):
        if isinstance(inner, Mapping) and "$ref" not in inner and (limits := _limits(inner)):
            said.append(f"each {limits}")
    return ", ".join(said)


def _default(value: Schema) -> str:
    default = value.get("default")
    if default is None or default in ([], {}):
        return "none"
    return "see there" if isinstance(default, Mapping) else f"`{json.dumps(default)}`"


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | type | default | limits | what it is |", "|---|---|---|---|---|", *rows])


def _of_section(value: Schema, schema: Schema) -> str:
    """Give the first sentence on a section that a value may be."""
    told = [schema["$defs"][name].get("description", "") for name, _ in _sections_in(value)]
    return told[0].partition("\n\n")[0].removesuffix(".") if told else ""


def _docstring(definition: Schema) -> str:
    """Give what the docstring says."""
    return str(definition.get("description", "")).replace("``", "`")


def _of_methods() -> str:
    """Write what only some methods have."""
    parts = ["## What only some methods have", "These stand in a recipe, beside the rest."]
    for name, method in METHODS.items():
        schema = method.settings.model_json_schema()
        rows = [_row("", key, value, schema) for key, value in _keys("", schema)]
        parts += [f"### `{name}`\n\n{_table(rows)}"] if rows else []
    return "\n\n".join(parts)
