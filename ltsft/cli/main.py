"""The `ltsft` command. Thin: every command reads its arguments, calls one thing and shows what it gave.

It is the entry point. The files of `ltsft/cli/` alone start flows here; those are imported when they are needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ltsft.cli.comparing import comparing
from ltsft.cli.console import console, escaped, fail, fail_run, told_errors
from ltsft.cli.experiments import experimenting
from ltsft.cli.flows import run_flow, start_server, wants_bars
from ltsft.cli.options import AsJson, ProjectFile, ProjectOptions, grouped
from ltsft.cli.release import releasing

if TYPE_CHECKING:
    from ltsft.composition import Weight
    from ltsft.evaluation import Matrix
    from tasks.orchestration import PoolSettings, RunSettings
    from tasks.workspace import Workspace

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

app.add_typer(experimenting)
app.add_typer(releasing)
app.add_typer(comparing)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from ltsft.version import __version__

        print(f"ltsft {__version__}")
        raise typer.Exit


@app.callback(help="Learn, store, compose and measure sparse fine-tunings (LT-SFT) of multilingual encoders.")
def _set_up(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Set what must be in the environment before torch, Prefect and MLflow are imported."""
    from ltsft.heap import collect_seldom
    from tasks.quiet import quiet_services

    collect_seldom()
    quiet_services()


@app.command()
@grouped
def plan(
    file: ProjectFile,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
    as_json: AsJson = False,
) -> None:
    """Show each product, whether it is up to date and, if not, why."""
    with told_errors():
        from tasks.workspace import expected, open_workspace

        workspace = open_workspace(options.ref(file))
        made = workspace.plan
        time = str(expected(workspace)) if not as_json else ""
    if as_json:
        print(json.dumps([step.as_row() for step in made.steps], indent=2))
        return
    table = Table("product", "state", "why", box=None)
    for step in made.steps:
        state = "[green]up to date[/]" if step.is_up_to_date else "[yellow]to do[/]"
        table.add_row(step.product.subject, state, escaped("; ".join(step.reasons)))
    out = console()
    out.print(table)
    out.print(f"{len(made.stale)} of {len(made.steps)} products are to be made")
    if time:
        out.print(f"time: {time}", soft_wrap=True)


@app.command()
@grouped
def run(
    file: ProjectFile,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show all of Prefect's log lines.")] = False,
) -> None:
    """Make what is not up to date: validate, train, compose, score; then print the matrix."""
    has_bars = not verbose and wants_bars()
    ref = options.ref(file)
    with told_errors():
        from tasks.evaluation import read_matrix, restore_page, with_changes
        from tasks.releases import live_scores
        from tasks.workspace import expected, open_workspace

        workspace = open_workspace(ref)
        matrix = read_matrix(workspace)
        if workspace.plan.stale and not as_json:
            print(f"{len(workspace.plan.stale)} products are to be made; time: {expected(workspace)}")
        failed = ""
        if workspace.plan.stale or restore_page(workspace, matrix) is None:
            start_server()
            from flows.retrain import retrain

            end = run_flow(retrain, ref, has_bars=has_bars)
            failed = "" if end.is_completed else end.message
            workspace = open_workspace(ref)
            matrix = read_matrix(workspace)
        _show_matrix(with_changes(workspace, matrix, live_scores(workspace)), workspace, as_json=as_json)
    if failed:
        fail_run(failed)


def _show_matrix(matrix: Matrix, workspace: Workspace, *, as_json: bool) -> None:
    from ltsft.evaluation import matrix_text
    from tasks.tracking import VIEWS

    if as_json:
        print(json.dumps(asdict(matrix), indent=2, default=str))
        return
    print(matrix_text(matrix))
    out = console()
    page = workspace.store / "report.html"
    if page.is_file():
        out.print(f"Report:  {page}", soft_wrap=True)
    tracker = workspace.tracker
    tracker.arrange()
    command = tracker.ui_command()
    if command:
        out.print(f"MLflow:  {escaped(command)}", soft_wrap=True)
    for view in VIEWS[:2] if command else VIEWS:
        out.print(f"         {view.name}: {tracker.ui_link(view)}", soft_wrap=True)


@dataclass(frozen=True)
class PoolOptions:
    """Of the pools."""

    job_variables: Annotated[
        list[str] | None,
        typer.Option("--job-variable", help="Another default of the pools, as name=value or pool.name=value."),
    ] = None
    pool_limits: Annotated[
        list[str] | None, typer.Option("--pool-limit", help="Runs at once in a pool, as ltsft-gpu=8.")
    ] = None
    pool_type: Annotated[str, typer.Option(help="kubernetes; or process, for Compose.")] = "kubernetes"

    def read(self) -> PoolSettings:
        """Give what they say."""
        from tasks.orchestration import PoolSettings

        return PoolSettings(
            job_variables=dict(map(_name_and_value, self.job_variables or ())),
            limits=dict(map(_name_and_count, self.pool_limits or ())),
            type=self.pool_type,
        )


@dataclass(frozen=True)
class RunOptions:
    """Of the deployments."""

    schedules: Annotated[
        list[str] | None,
        typer.Option(
            "--schedule",
            help="Another schedule, as watch-inbox=30s, retrain='0 2 * * 6' (UTC) or retrain=none.",
        ),
    ] = None
    app_folder: Annotated[str, typer.Option(help="Where the code is in the image.")] = "/app"
    run_file: Annotated[
        str | None, typer.Option(help="Where flows find the project file, if it is not in the image as it is here.")
    ] = None
    zombie_seconds: Annotated[
        float,
        typer.Option(min=10, help="A run that is silent for so long has crashed; it gives a sign every 30 s."),
    ] = 120.0

    def read(self) -> RunSettings:
        """Give what they say."""
        from tasks.orchestration import RunSettings

        return RunSettings(
            app_folder=self.app_folder,
            file=self.run_file,
            schedules={name: str(when) for name, when in map(_name_and_value, self.schedules or ())},
            zombie_seconds=self.zombie_seconds,
        )


@app.command()
@grouped
def bootstrap(
    file: Annotated[Path, typer.Argument(envvar="LTSFT_PROJECT", help="The project file, such as configs/ud.yaml.")],
    root: Annotated[Path, typer.Option(help="Folder with prefect.yaml and infra/.")] = Path(),
    pools: PoolOptions = PoolOptions(),
    runs: RunOptions = RunOptions(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
) -> None:
    """Make Prefect, MLflow and the bucket ready for a project on a cluster; what is ready is not touched."""
    with told_errors():
        from tasks.orchestration import bootstrap as make_ready

        changes = make_ready(file, root=root, pools=pools.read(), runs=runs.read(), dry_run=dry_run)
    for change in changes:
        print(change)
    print(f"{len(changes)} changes{' would be made' if dry_run else ''}" if changes else "nothing to change")


def _name_and_value(argument: str) -> tuple[str, Any]:
    """Read name=value; the value is JSON where it can be read as such, else text."""
    name, separator, value = argument.partition("=")
    if not separator:
        fail(f"give name=value, got {argument!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _name_and_count(argument: str) -> tuple[str, int]:
    """Read name=number."""
    name, value = _name_and_value(argument)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        fail(f"give name=number, got {argument!r}")
    return name, value


@app.command()
def inspect(sft: Annotated[Path, typer.Argument(help="An SFT folder.")], as_json: AsJson = False) -> None:
    """Check an SFT folder and show what it is, and where it changes the base."""
    with told_errors():
        from ltsft.evaluation import sparsity
        from ltsft.sft import load_sft, read_manifest

        loaded = load_sft(sft)
        manifest, measured = read_manifest(sft), sparsity(loaded)
    if as_json:
        print(json.dumps({"manifest": manifest, "sparsity": measured.to_dict()}, indent=2))
        return
    out = console()
    out.print(f"{escaped(loaded.title)}: K = {loaded.support_size:,} of {loaded.maskable:,} weights")
    out.print(f"density {100 * loaded.density:.3f} %, base {loaded.base.id}")
    if loaded.adapter:
        out.print(f"method {loaded.method}: an adapter of {loaded.parameters:,} parameters in place of a support")
    for label, value in (("labels", ", ".join(loaded.labels)), ("learnt from", ", ".join(loaded.source_languages))):
        if value:
            out.print(f"{label}: {escaped(value)}")
    for title, shares in (("layer", measured.layers), ("parameter group", measured.groups)):
        table = Table(title, "weights", "support", "density %", "L1", "L2", box=None)
        for name, share in shares.items():
            table.add_row(
                name,
                f"{share.weights:,}",
                f"{share.support_size:,}",
                f"{100 * share.density:.3f}",
                f"{share.l1:.4g}",
                f"{share.l2:.4g}",
            )
        out.print(table)


@app.command()
@grouped
def sfts(
    file: ProjectFile,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
    as_json: AsJson = False,
) -> None:
    """List the SFTs of a project, the newest of each, with the folders that other commands take."""
    with told_errors():
        from tasks.workspace import open_workspace, stored_sfts

        found = stored_sfts(open_workspace(options.ref(file), needs_data=False))
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2, default=str))
        return
    if not found:
        fail(f"no SFT has been learnt yet; make them with: ltsft run {file}")
    width = max(len(each.subject) for each in found)
    for each in found:
        print(f"{each.subject:{width}}  {each.learnt:%Y-%m-%d %H:%M}  {100 * each.density:6.2f} %  {each.folder}")


@app.command()
def compose(
    sfts: Annotated[
        list[str],
        typer.Argument(
            help="SFT folders in order, each with an optional weight: FOLDER@0.5, FOLDER@embeddings=0.5,layer.0=0.8"
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="The base: a folder, or a hub id as id@revision.")],
    out: Annotated[Path, typer.Option(help="The folder to write: an ordinary Hugging Face folder.")],
    rule: Annotated[str, typer.Option(help="How the diffs are put together: sum, ties or ties_sum.")] = "sum",
) -> None:
    """Compose base + SFTs and write the result as an ordinary Hugging Face folder."""
    with told_errors():
        from ltsft.base import load_base
        from ltsft.composition import export_composition
        from ltsft.objectives import model_of
        from ltsft.sft import load_sft

        parts = [(load_sft(folder), weight) for folder, weight in map(_weighted, sfts)]
        loaded = load_base(*_id_and_revision(base))
        task = next((sft for sft, _ in parts if sft.kind == "task"), None)
        model = model_of(loaded, task) if task is not None else loaded.masked_lm()
        export_composition(model, loaded.tokenizer, parts, out, base=loaded.ref, rule=rule)
    console().print(f"wrote {out}", soft_wrap=True)


@app.command()
def convert(
    reference: Annotated[Path, typer.Argument(help="Folder with pytorch_diff.bin of the reference implementation.")],
    out: Annotated[Path, typer.Argument(help="The SFT folder to write.")],
    base: Annotated[str, typer.Option("--base", help="The base that it was learnt on: a folder, or id@revision.")],
    kind: Annotated[str, typer.Option(help="language or task")],
    subject: Annotated[str, typer.Option(help="The language code or the target task.")],
) -> None:
    """Turn an SFT of the reference implementation into an SFT folder; nothing in it is executed."""
    if kind not in ("language", "task"):
        fail(f"--kind must be language or task, got {kind!r}")
    with told_errors():
        from ltsft.base import load_base
        from ltsft.sft import convert_reference, save_sft

        loaded = load_base(*_id_and_revision(base))
        sft = convert_reference(
            reference,
            base=loaded.ref,
            kind="language" if kind == "language" else "task",
            subject=subject,
            model=loaded.masked_lm(),
        )
        save_sft(sft, out)
    console().print(f"wrote {out}: K = {sft.support_size:,}", soft_wrap=True)


@app.command()
def toy(folder: Annotated[Path, typer.Argument(help="Where the artificial family and its base are written.")]) -> None:
    """Write the artificial language family and pre-train its base; nothing is done if both are there."""
    with told_errors():
        from ltsft.toy import make_toy

        make_toy(folder, on_progress=lambda message: console().print(message))


def _weighted(argument: str) -> tuple[str, Weight]:
    from ltsft.composition import parse_weight

    folder, separator, weight = argument.rpartition("@")
    return (argument, 1.0) if not separator or Path(argument).exists() else (folder, parse_weight(weight))


def _id_and_revision(base: str) -> tuple[str, str | None]:
    if Path(base).is_dir():
        return base, None
    identifier, _, revision = base.partition("@")
    return identifier, revision or None
