"""What the commands share: their options, how they print, and how an error of ours is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from ltsft.errors import LtsftError

if TYPE_CHECKING:
    from ltsft.project import ProjectRef

ProjectFile = Annotated[Path, typer.Argument(help="The project file, such as configs/ud.yaml.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder or URL that relative data sources start from.")]
BaseOption = Annotated[str | None, typer.Option("--base", help="Another base: a folder, or a hub id as id@revision.")]
MethodOption = Annotated[
    str | None, typer.Option("--method", help="How SFTs are learnt, such as lora; the file's method without it.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Another value, as dotted.path=value; may be given several times.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def told_errors(*, is_stopped_at_end: bool = True) -> Iterator[None]:
    """Show our own errors, and that a person stopped it, as a message and not as a traceback.

    Args:
        is_stopped_at_end: whether a Ctrl-C of which nothing came, because a library caught it, is told at the end.

    Raises:
        Exit: with 2 after an error, with 130 after Ctrl-C, as shells have it.
    """
    from tasks.orchestration import remembering_orders, stop_if_asked

    try:
        with remembering_orders():
            yield
            if is_stopped_at_end:
                stop_if_asked()
    except LtsftError as error:
        fail(str(error))
    except KeyboardInterrupt as stop:
        _show_trouble("; ".join(["stopped", *map(str, stop.args)]))
        raise typer.Exit(130) from None


def fail(message: str) -> NoReturn:
    """Show a message and leave with exit code 2."""
    _show_trouble(message)
    raise typer.Exit(2)


def fail_run(message: str) -> NoReturn:
    """Show what a run could not make and leave with exit code 1."""
    _show_trouble(message, "failed:")
    raise typer.Exit(1)


def _show_trouble(message: str, first: str = "ltsft:") -> None:
    Console(stderr=True, highlight=False).print(f"[bold red]{first}[/] {escaped(message)}", soft_wrap=True)


def escaped(text: str) -> str:
    """Keep rich from reading brackets as markup."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("[", r"\[")


def console() -> Console:
    """Give where results are shown."""
    return Console(highlight=False)


def project_ref(
    file: Path, data_root: str | None, base: str | None, overrides: list[str] | None, method: str | None = None
) -> ProjectRef:
    """Say how flows read the project file again."""
    from ltsft.project import ProjectRef  # pydantic takes a while; --help does without

    return ProjectRef(file=str(file), data_root=data_root, base=base, method=method, overrides=tuple(overrides or ()))
