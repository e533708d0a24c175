"""The commands of experiments: sweep-density, compare-methods, search-weights. Thin, as in `ltsft/cli.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from ltsft.console import (
    BaseOption,
    DataRoot,
    MethodOption,
    Overrides,
    ProjectFile,
    escaped,
    fail,
    project_ref,
    told_errors,
)

experimenting = typer.Typer()

Targets = Annotated[str | None, typer.Option("--target-task", help="Only this target task, such as pos.")]
Languages = Annotated[str | None, typer.Option(help="Target languages, with commas between; all without it.")]
_Value = TypeVar("_Value")


@experimenting.command(name="sweep-density")
def sweep_density(
    file: ProjectFile,
    language_densities: Annotated[str, typer.Option(help="Of language SFTs, with commas between; 1 is dense.")],
    task_densities: Annotated[str, typer.Option(help="Of task SFTs, with commas between; 1 is dense.")],
    target_task: Targets = None,
    languages: Languages = None,
    method: MethodOption = None,
    data_root: DataRoot = None,
    base: BaseOption = None,
    overrides: Overrides = None,
) -> None:
    """Show what density does to the score, to interference and to overfitting; make what is missing for it."""
    ref = project_ref(file, data_root, base, overrides, method)
    with told_errors():
        from flows.sweep_density import sweep_density as flow

        _run(
            flow,
            ref,
            language_densities=_several(language_densities, float),
            task_densities=_several(task_densities, float),
            target_task=target_task,
            languages=_several(languages, str) if languages else None,
        )


@experimenting.command(name="compare-methods")
def compare_methods(
    file: ProjectFile,
    methods: Annotated[str, typer.Option(help="With commas between, such as lt_sft,task_only,lora.")],
    reference: Annotated[str, typer.Option(help="What the others are compared with.")] = "lt_sft",
    seeds: Annotated[
        str | None, typer.Option(help="Of the task trainings, such as 1,2,3; the recipes' without it.")
    ] = None,
    target_task: Targets = None,
    languages: Languages = None,
    data_root: DataRoot = None,
    base: BaseOption = None,
    overrides: Overrides = None,
) -> None:
    """Compare methods by language and on average, with intervals; make what is missing for it."""
    ref = project_ref(file, data_root, base, overrides)
    with told_errors():
        from flows.compare_methods import compare_methods as flow

        _run(
            flow,
            ref,
            methods=_several(methods, str),
            reference=reference,
            seeds=_several(seeds, int) if seeds else None,
            target_task=target_task,
            languages=_several(languages, str) if languages else None,
        )


@experimenting.command(name="search-weights")
def search_weights(
    file: ProjectFile,
    language_weights: Annotated[
        str, typer.Option(help="Of the language SFT, with commas between.")
    ] = "0,0.25,0.5,0.75,1,1.25",
    task_weights: Annotated[str, typer.Option(help="Of the task SFT, with commas between.")] = "1",
    rules: Annotated[str, typer.Option(help="Composition rules, with commas between.")] = "sum",
    target_task: Targets = None,
    method: MethodOption = None,
    data_root: DataRoot = None,
    base: BaseOption = None,
    overrides: Overrides = None,
) -> None:
    """Score weights and rules of compositions on held-out data, never on test data; the SFTs have to exist."""
    ref = project_ref(file, data_root, base, overrides, method)
    with told_errors():
        from flows.search_weights import search_weights as flow

        _run(
            flow,
            ref,
            language_weights=_several(language_weights, float),
            task_weights=_several(task_weights, float),
            rules=_several(rules, str),
            target_task=target_task,
        )


def _several(text: str, kind: Callable[[str], _Value]) -> list[_Value]:
    """Read values with commas between."""
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        fail(f"give numbers with commas between, got {text!r}")


def _run(flow: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Run a flow with bars in a terminal and print the table that it ends with; exit with 1 if something is missing."""
    has_bars = sys.stderr.isatty()
    if has_bars:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from tasks.local_flows import run_locally
    from tasks.progress import shown_progress

    with shown_progress() if has_bars else nullcontext():
        end = run_locally(flow, *arguments, **named)
    if end.is_completed:
        print(end.message)
        return
    if end.error:
        fail(end.error)
    Console(stderr=True, highlight=False).print(f"[bold red]failed:[/] {escaped(end.message)}", soft_wrap=True)
    raise typer.Exit(1)
