"""Options that several commands have, and commands that take them in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from ltsft.project import ProjectRef

__all__ = ["AsJson", "DataOptions", "ProjectFile", "ProjectOptions", "grouped"]

ProjectFile = Annotated[Path, typer.Argument(help="The project file, such as configs/ud.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class DataOptions:
    """What of a project file is otherwise this time."""

    data_root: Annotated[str | None, typer.Option(help="Folder or URL that relative data sources start from.")] = None
    base: Annotated[str | None, typer.Option("--base", help="Another base: a folder, or a hub id as id@revision.")] = (
        None
    )
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Another value, as dotted.path=value; may be given several times.")
    ] = None

    def ref(self, file: Path) -> ProjectRef:
        """Say how flows read the project file again."""
        from ltsft.project import ProjectRef  # pydantic takes a while; --help does without

        return ProjectRef(file=str(file), **{**vars(self), "overrides": tuple(self.overrides or ())})


@dataclass(frozen=True)
class ProjectOptions(DataOptions):
    """The same, and how SFTs are learnt."""

    method: Annotated[
        str | None, typer.Option("--method", help="How SFTs are learnt, such as lora; the file's method without it.")
    ] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take options in groups: a parameter whose type is a dataclass stands for its fields."""
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in parameters.items() if is_dataclass(p.annotation)}
    spread: list[inspect.Parameter] = []
    for name, parameter in parameters.items():
        if name not in groups:
            spread.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        spread += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(groups[name])
        ]

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return run
