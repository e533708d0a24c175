"""The commands of a release: promote, rollback, releases, export, push, serve. Thin, as in `ltsft/cli/main.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ltsft.cli.console import console, escaped, told_errors
from ltsft.cli.flows import print_end, run_flow, start_server
from ltsft.cli.options import AsJson, DataOptions, ProjectOptions, grouped

releasing = typer.Typer()

ProjectOption = Annotated[
    Path, typer.Option("--project", envvar="LTSFT_PROJECT", help="The project file, such as configs/ud.yaml.")
]
Language = Annotated[str, typer.Argument(help="Language code, such as fo.")]
Target = Annotated[str, typer.Argument(metavar="TASK", help="Target task, such as pos.")]
Why = Annotated[str, typer.Option("--why", help="Why, for the record.")]


@releasing.command()
@grouped
def promote(
    project: ProjectOption,
    language: Annotated[str | None, typer.Argument(help="Language code; every language without it.")] = None,
    target_task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Target task; every one without it.")
    ] = None,
    why: Why = "",
    again: Annotated[bool, typer.Option("--again", help="Also what was rolled back.")] = False,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Release what is scored and not live yet, if it passes its gates."""
    ref = options.ref(project)
    with told_errors():
        start_server()
        from flows.promote import promote as flow

        print_end(run_flow(flow, ref, language=language, target_task=target_task, reason=why, again=again))


@releasing.command()
@grouped
def rollback(
    project: ProjectOption,
    language: Language,
    target_task: Target,
    to: Annotated[
        str | None, typer.Option(help="A version that was live once, or none to take it out of service.")
    ] = None,
    why: Why = "",
    options: DataOptions = DataOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Go back to the version that was live before."""
    ref = options.ref(project)
    with told_errors():
        start_server()
        from flows.rollback import rollback as flow

        print_end(run_flow(flow, ref, language=language, target_task=target_task, to=to, reason=why))


@releasing.command()
@grouped
def releases(
    project: ProjectOption,
    options: DataOptions = DataOptions(),  # noqa: B008 - it is frozen
    as_json: AsJson = False,
) -> None:
    """Show what is live, since when, and what stands behind it."""
    with told_errors():
        from tasks.releases import read_releases
        from tasks.workspace import open_workspace

        ref = options.ref(project)
        found = read_releases(open_workspace(ref, needs_data=False))
    if as_json:
        print(json.dumps([live.as_row() for live in found], indent=2))
        return
    table = Table(box=None)
    for title in ("release", "live", "since", "by", "why", "score", "made from", "candidate"):
        table.add_column(title, no_wrap=title in ("release", "live", "since", "score"))
    for live in found:
        row = live.as_row()
        row["since"] = f"{live.since:%Y-%m-%d %H:%M}" if live.since else None
        row["score"] = None if row["score"] is None else f"{float(row['score']):.4f}"
        shown = ("release", "version", "since", "who", "why", "score", "parents", "candidate")
        table.add_row(*(escaped("-" if row[name] in (None, "") else str(row[name])) for name in shown))
    out = console()
    out.print(table)
    for live in found:
        if live.trouble is not None:
            mend = f"ltsft rollback {live.slot.language} {live.slot.target_task} goes back"
            told = f"{live.slot}: version {live.trouble.version} cannot be read: {live.trouble.reason}; {mend}"
            out.print(escaped(told), soft_wrap=True)


@releasing.command()
@grouped
def export(
    project: ProjectOption,
    language: Language,
    target_task: Target,
    to: Annotated[str, typer.Option(help="hf, onnx, s3://bucket/prefix, or hub:OWNER/NAME.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The folder to write, for hf and onnx.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="A version; the live one without it, and what is scored if none is live.")
    ] = None,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Write a composed model to where something else takes it from."""
    with told_errors():
        from tasks.releases import export_release
        from tasks.workspace import open_workspace

        workspace = open_workspace(options.ref(project), needs_data=False)
        wrote = export_release(workspace, language, target_task, to=to, folder=folder, version=version)
    console().print(f"wrote {escaped(wrote)}", soft_wrap=True)


@releasing.command()
@grouped
def bundle(
    project: ProjectOption,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write, new or an earlier bundle.")],
    options: DataOptions = DataOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Write everything that is live into a folder that a server can start from while the registry is away."""
    with told_errors():
        from tasks.releases import write_bundle
        from tasks.workspace import open_workspace

        ref = options.ref(project)
        wrote = write_bundle(open_workspace(ref, needs_data=False), folder)
    console().print(f"wrote {escaped(wrote)}", soft_wrap=True)


@releasing.command()
def push(
    sft: Annotated[Path, typer.Argument(help="An SFT folder, or a composition exported with --to hf.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository is private without it.")] = False,
) -> None:
    """Push an SFT or an exported composition to the Hugging Face hub (with the token of HF_TOKEN)."""
    with told_errors():
        from ltsft.release import push_folder

        wrote = push_folder(sft, repository, is_private=not public)
    console().print(f"pushed to {escaped(wrote)}", soft_wrap=True)


@releasing.command()
@grouped
def serve(
    project: ProjectOption,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    bundle: Annotated[Path | None, typer.Option(help="Release bundle to start from when the registry is away.")] = None,
    options: DataOptions = DataOptions(),  # noqa: B008 - it is frozen
) -> None:
    """Answer requests with every released composition, over one resident base."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server starts from its bundle instead of waiting
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    with told_errors(is_stopped_at_end=False):  # the server is told to stop by a signal, and does
        from tasks.releases import run_service

        run_service(options.ref(project), host=host, port=port, bundle=bundle)
