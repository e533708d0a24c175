"""The `ltsft` command. Thin: every command reads its arguments, calls one thing and shows what it gave.

It is the entry point, and so the one file of this package that starts flows; they are imported when they are needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ltsft.config import ProjectRef
from ltsft.errors import LtsftError, ServiceError

if TYPE_CHECKING:
    from ltsft.matrix import Matrix
    from tasks.workspace import Workspace

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

ProjectFile = Annotated[Path, typer.Argument(help="The project file, such as configs/ud.yaml.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder or URL that relative data sources start from.")]
BaseOption = Annotated[str | None, typer.Option("--base", help="Another base: a folder, or a hub id as id@revision.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Another value, as dotted.path=value; may be given several times.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def _told_errors() -> Iterator[None]:
    """Show our own errors as a message, not as a traceback."""
    try:
        yield
    except LtsftError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[bold red]ltsft:[/] {_escape(message)}", soft_wrap=True)
    raise typer.Exit(2)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _console() -> Console:
    return Console(highlight=False)


def _ref(file: Path, data_root: str | None, base: str | None, overrides: list[str] | None) -> ProjectRef:
    return ProjectRef(file=str(file), data_root=data_root, base=base, overrides=tuple(overrides or ()))


@app.callback(help="Learn, store, compose and measure sparse fine-tunings (LT-SFT) of multilingual encoders.")
def _set_up() -> None:
    """Set what must be in the environment before torch, Prefect and MLflow are imported."""
    from tasks.settings import quiet_services

    quiet_services()


@app.command()
def plan(
    file: ProjectFile,
    data_root: DataRoot = None,
    base: BaseOption = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show each product, whether it is up to date and, if not, why."""
    with _told_errors():
        from tasks.workspace import open_workspace

        made = open_workspace(_ref(file, data_root, base, overrides)).plan
    if as_json:
        print(json.dumps([step.as_row() for step in made.steps], indent=2))
        return
    table = Table("product", "state", "why", box=None)
    for step in made.steps:
        state = "[green]up to date[/]" if step.is_up_to_date else "[yellow]to do[/]"
        table.add_row(step.product.subject, state, _escape("; ".join(step.reasons)))
    console = _console()
    console.print(table)
    console.print(f"{len(made.stale)} of {len(made.steps)} products are to be made")


@app.command()
def run(
    file: ProjectFile,
    data_root: DataRoot = None,
    base: BaseOption = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show all of Prefect's log lines.")] = False,
) -> None:
    """Make what is not up to date: validate, train, compose, score; then print the matrix."""
    has_bars = sys.stderr.isatty() and not verbose
    if has_bars:  # the bars show what matters; all log lines are in Prefect
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    ref = _ref(file, data_root, base, overrides)
    with _told_errors():
        from tasks.matrix import read_matrix, restore_page
        from tasks.workspace import open_workspace

        workspace = open_workspace(ref)
        matrix = read_matrix(workspace)
        failed = ""
        if workspace.plan.stale or restore_page(workspace, matrix) is None:
            failed = _retrain(ref, has_bars=has_bars)
            workspace = open_workspace(ref)
            matrix = read_matrix(workspace)
        _show_matrix(matrix, workspace, as_json=as_json)
    if failed:
        Console(stderr=True, highlight=False).print(f"[bold red]failed:[/] {_escape(failed)}", soft_wrap=True)
        raise typer.Exit(1)


def _retrain(ref: ProjectRef, *, has_bars: bool) -> str:
    """Run the flow; give what failed, or nothing."""
    from tasks.progress import shown_progress

    with shown_progress() if has_bars else nullcontext():
        import httpx

        from flows.retrain import retrain

        try:
            state = retrain(ref, return_state=True)
        except (
            RuntimeError,
            httpx.HTTPError,
        ) as error:  # of Prefect itself: what fails inside the flow is in its state
            raise ServiceError(
                f"Prefect cannot be used: {type(error).__name__}: {error}; check PREFECT_API_URL "
                f"({os.environ.get('PREFECT_API_URL', 'not set: a server is started for the run')}) and that it is up"
            ) from error
    return "" if state.is_completed() else state.message or "the run failed"


def _show_matrix(matrix: Matrix, workspace: Workspace, *, as_json: bool) -> None:
    from ltsft.matrix import matrix_text

    if as_json:
        print(json.dumps(asdict(matrix), indent=2, default=str))
        return
    print(matrix_text(matrix))
    console = _console()
    page = workspace.store / "report.html"
    if page.is_file():
        console.print(f"Report:  {page}", soft_wrap=True)
    console.print(f"MLflow:  {workspace.tracker.ui_command()}", soft_wrap=True)


@app.command()
def inspect(sft: Annotated[Path, typer.Argument(help="An SFT folder.")], as_json: AsJson = False) -> None:
    """Check an SFT folder and show what it is, and where it changes the base."""
    with _told_errors():
        from ltsft.files import load_sft, read_manifest
        from ltsft.interference import sparsity

        loaded = load_sft(sft)
        manifest, measured = read_manifest(sft), sparsity(loaded)
    if as_json:
        print(json.dumps({"manifest": manifest, "sparsity": measured.to_dict()}, indent=2))
        return
    console = _console()
    console.print(f"{_escape(loaded.title)}: K = {loaded.support_size:,} of {loaded.maskable:,} weights")
    console.print(f"density {100 * loaded.density:.3f} %, base {loaded.base.id}")
    for label, value in (("labels", ", ".join(loaded.labels)), ("learnt from", ", ".join(loaded.source_languages))):
        if value:
            console.print(f"{label}: {_escape(value)}")
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
        console.print(table)


@app.command()
def compare(
    sfts: Annotated[list[Path], typer.Argument(help="Two or more SFT folders.")], as_json: AsJson = False
) -> None:
    """Show how every two of the SFTs interfere: overlap, sign conflict, collision."""
    if len(sfts) < 2:
        _fail(f"compare takes two SFT folders or more, got {len(sfts)}")
    with _told_errors():
        from ltsft.files import load_sft
        from ltsft.interference import interference

        loaded = [load_sft(folder) for folder in sfts]
        pairs = [(a, b, interference(a, b)) for i, a in enumerate(loaded) for b in loaded[i + 1 :]]
    if as_json:
        rows: list[dict[str, Any]] = [{"a": a.path, "b": b.path, **met.to_dict()} for a, b, met in pairs]
        print(json.dumps(rows, indent=2))
        return
    table = Table("a", "b", "in both", "x chance", "overlap %", "sign conflict %", "cosine", "energy %", box=None)
    for a, b, met in pairs:
        o = met.overall
        table.add_row(
            _escape(str(a.path)),
            _escape(str(b.path)),
            f"{o.intersection:,}",
            f"{o.intersection / o.expected:.2f}" if o.expected else "-",
            f"{100 * o.overlap:.2f}",
            f"{100 * o.sign_conflict:.2f}",
            f"{o.cosine_on_intersection:.3f}",
            f"{100 * o.energy:.2f}",
        )
    _console().print(table)


@app.command()
def compose(
    sfts: Annotated[
        list[str], typer.Argument(help="SFT folders in order, each with an optional weight: FOLDER or FOLDER@0.5")
    ],
    base: Annotated[str, typer.Option("--base", help="The base: a folder, or a hub id as id@revision.")],
    out: Annotated[Path, typer.Option(help="The folder to write: an ordinary Hugging Face folder.")],
    rule: Annotated[str, typer.Option(help="How the diffs are put together.")] = "sum",
) -> None:
    """Compose base + SFTs and write the result as an ordinary Hugging Face folder."""
    with _told_errors():
        from ltsft.base import load_base
        from ltsft.compose import export_composition
        from ltsft.files import load_sft
        from ltsft.objectives.registry import model_of

        parts = [(load_sft(folder), weight) for folder, weight in map(_weighted, sfts)]
        loaded = load_base(*_id_and_revision(base))
        task = next((sft for sft, _ in parts if sft.kind == "task"), None)
        model = model_of(loaded, task) if task is not None else loaded.masked_lm()
        export_composition(model, loaded.tokenizer, parts, out, base=loaded.ref, rule=rule)
    _console().print(f"wrote {out}", soft_wrap=True)


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
        _fail(f"--kind must be language or task, got {kind!r}")
    with _told_errors():
        from ltsft.base import load_base
        from ltsft.files import save_sft
        from ltsft.reference import convert_reference

        loaded = load_base(*_id_and_revision(base))
        sft = convert_reference(
            reference,
            base=loaded.ref,
            kind="language" if kind == "language" else "task",
            subject=subject,
            model=loaded.masked_lm(),
        )
        save_sft(sft, out)
    _console().print(f"wrote {out}: K = {sft.support_size:,}", soft_wrap=True)


@app.command()
def toy(folder: Annotated[Path, typer.Argument(help="Where the artificial family and its base are written.")]) -> None:
    """Write the artificial language family and pre-train its base; nothing is done if both are there."""
    with _told_errors():
        from ltsft.toy import make_toy

        make_toy(folder, on_progress=lambda message: _console().print(message))


def _weighted(argument: str) -> tuple[str, float]:
    folder, separator, weight = argument.rpartition("@")
    if not separator or Path(argument).exists():
        return argument, 1.0
    try:
        return folder, float(weight)
    except ValueError:
        _fail(f"the weight of {folder} must be a number, got {weight!r}")


def _id_and_revision(base: str) -> tuple[str, str | None]:
    if Path(base).is_dir():
        return base, None
    identifier, _, revision = base.partition("@")
    return identifier, revision or None


if __name__ == "__main__":
    app()
