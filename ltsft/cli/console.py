"""What the commands share: how they print, and how an error of ours is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from ltsft.errors import LtsftError


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
