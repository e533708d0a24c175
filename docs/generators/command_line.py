"""The page of the command line, from the command itself: each argument, option, default and variable."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument

from ltsft.cli import app

__all__ = ["commands", "page"]


def page() -> str:
    """Write the page as Markdown, without its title."""
    return "\n\n".join(_section(name, command) for name, command in sorted(commands().items()))


def commands() -> dict[str, Any]:
    """Give each command by its name."""
    return dict(typer.main.get_command(app).commands)


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if isinstance(p, TyperArgument)]
    options = [p for p in command.params if not isinstance(p, TyperArgument)]
    usage = " ".join(["ltsft", name, *map(_used, arguments), *(_used(p) for p in options if p.required), "[OPTIONS]"])
    parts = [f"## {name}", str(command.help), f"```text\n{usage}\n```"]
    rows = [_row(parameter) for parameter in (*arguments, *options)]
    return "\n\n".join([*parts, "\n".join(["| | default | what it is |", "|---|---|---|", *rows])])


def _used(parameter: Any) -> str:
    """Give what stands in the usage."""
    if not isinstance(parameter, TyperArgument):
        return f"{parameter.opts[0]} {parameter.name.upper()}"
    name = _metavar(parameter)
    return f"{name if parameter.required else f'[{name}]'}{' ...' if parameter.nargs == -1 else ''}"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper()).strip("[]")


def _row(parameter: Any) -> str:
    is_argument = isinstance(parameter, TyperArgument)
    name = f"`{_metavar(parameter)}`" if is_argument else ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.required:
        default = "**required**"
    elif parameter.default in (None, "", False) or str(parameter.default) == ".":
        default = "the working folder" if str(parameter.default) == "." else ""
    else:
        default = f"`{parameter.default}`"
    told = [parameter.help or "", f"Variable: `{parameter.envvar}`." if parameter.envvar else ""]
    if parameter.min is not None or parameter.max is not None:
        told.append(f"From {parameter.min}{'' if parameter.max is None else f' to {parameter.max}'}.")
    return f"| {name} | {default} | {' '.join(filter(None, told))} |".replace("||", "| |")
