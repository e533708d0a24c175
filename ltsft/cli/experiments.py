"""The commands of experiments: sweep-density, compare-methods, search-weights. Thin, as in `ltsft/cli/main.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from ltsft.cli.console import fail, told_errors
from ltsft.cli.flows import print_end, run_flow, start_server, wants_bars
from ltsft.cli.options import DataOptions, ProjectFile, ProjectOptions, grouped

experimenting = typer.Typer()

Targets = Annotated[str | None, typer.Option("--target-task", help="Only this target task, such as pos.")]
Languages = Annotated[str | None, typer.Option(help="Target languages, with commas between; all without it.")]
_Value = TypeVar("_Value")


@experimenting.command(name="sweep-density")
@grouped
def sweep_density(
    file: ProjectFile,
    language_densities: Annotated[str, typer.Option(help="Of language SFTs, with commas between; 1 is dense.")],
    task_densities: Annotated[str, typer.Option(help="Of task SFTs, with commas between; 1 is dense.")],
    target_task: Targets = None,
    languages: Languages = None,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Show what density does to the score, to interference and to overfitting; make what is missing for it."""
    ref = options.ref(file)
    with told_errors():
        start_server()
        from flows.sweep_density import sweep_density as flow

        end = run_flow(
            flow,
            ref,
            has_bars=wants_bars(),
            language_densities=_several(language_densities, float),
            task_densities=_several(task_densities, float),
            target_task=target_task,
            languages=_several(languages, str) if languages else None,
        )
        print_end(end)


@experimenting.command(name="compare-methods")
@grouped
def compare_methods(
    file: ProjectFile,
    methods: Annotated[str, typer.Option(help="With commas between, such as lt_sft,task_only,lora.")],
    reference: Annotated[str, typer.Option(help="What the others are compared with.")] = "lt_sft",
    seeds: Annotated[
        str | None, typer.Option(help="Of the task trainings, such as 1,2,3; the recipes' without it.")
    ] = None,
    target_task: Targets = None,
    languages: Languages = None,
    options: DataOptions = DataOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Compare methods by language and on average, with intervals; make what is missing for it."""
    ref = options.ref(file)
    with told_errors():
        start_server()
        from flows.compare_methods import compare_methods as flow

        end = run_flow(
            flow,
            ref,
            has_bars=wants_bars(),
            methods=_several(methods, str),
            reference=reference,
            seeds=_several(seeds, int) if seeds else None,
            target_task=target_task,
            languages=_several(languages, str) if languages else None,
        )
        print_end(end)


@experimenting.command(name="search-weights")
@grouped
def search_weights(
    file: ProjectFile,
    language_weights: Annotated[
        str, typer.Option(help="Of the language SFT, with commas between.")
    ] = "0,0.25,0.5,0.75,1,1.25",
    task_weights: Annotated[str, typer.Option(help="Of the task SFT, with commas between.")] = "1",
    rules: Annotated[str, typer.Option(help="Composition rules, with commas between.")] = "sum",
    target_task: Targets = None,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Score weights and rules of compositions on held-out data, never on test data; the SFTs have to exist."""
    ref = options.ref(file)
    with told_errors():
        start_server()
        from flows.search_weights import search_weights as flow

        end = run_flow(
            flow,
            ref,
            has_bars=wants_bars(),
            language_weights=_several(language_weights, float),
            task_weights=_several(task_weights, float),
            rules=_several(rules, str),
            target_task=target_task,
        )
        print_end(end)


def _several(text: str, kind: Callable[[str], _Value]) -> list[_Value]:
    """Read values with commas between."""
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        fail(f"give numbers with commas between, got {text!r}")
