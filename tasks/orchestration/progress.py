"""Progress of a run: to MLflow as step metrics, to Prefect as log lines and progress artifacts, to people as bars."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from prefect.logging.configuration import setup_logging
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ltsft.errors import ServiceError
from ltsft.training import Progress
from tasks.tracking import RunHandle

FLUSH_SECONDS = 5.0
LOG_SECONDS = 30.0
AWAY_SECONDS = 60.0
"""How long a service that is away is left alone: each attempt makes the training wait."""
_SHOWN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "ltsft", "tasks", "flows")
_SAID_ONCE = ("ltsft.training.settling", "ltsft.evaluation.scoring")
_BARS: ContextVar[tuple[Bars, TaskID] | None] = ContextVar("bars", default=None)


class _AboveBars(logging.Handler):
    """Prints warnings and errors above the bars, but not Prefect's lines on states: the command ends with those.

    What is computed in is the same in each training: the terminal has it once, the log of each run for itself.
    """

    def __init__(self, bars: Bars) -> None:
        super().__init__(logging.WARNING)
        self._console = bars.console
        self._once: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Finished in state") or message in self._once:
            return
        if record.name in _SAID_ONCE:
            self._once.add(message)
        self._console.print(message, markup=False, soft_wrap=True)


@contextmanager
def shown_progress() -> Iterator[None]:
    """Show in the terminal what is being done inside the block, a bar for each training, and warnings above them.

    Prefect's own console handler would write into the bars: who calls this turns it off.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True, highlight=False)) as bars:
        token = _BARS.set((bars, bars.add_task("starting Prefect", total=None)))
        setup_logging()  # Prefect's first set-up of logging would remove handlers that are there before it
        handler = _AboveBars(bars)
        for name in _SHOWN_LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield
        finally:
            _BARS.reset(token)
            for name in _SHOWN_LOGGERS:
                logging.getLogger(name).removeHandler(handler)
            for shown in bars.task_ids:
                bars.remove_task(shown)


def show(doing: str) -> None:
    """Say in the terminal what is being done; nothing where no progress is shown."""
    if (found := _BARS.get()) is not None:
        bars, activity = found
        bars.update(activity, description=doing)


def artifact_key(*parts: str) -> str:
    """Give the key of a Prefect artifact: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


class ProgressReporter:
    """Tells MLflow and Prefect how far a training is, a few times a minute; a context manager around the training.

    A service that is away does not stop the training. What MLflow could not take is kept and sent later; only at the
    end it has to be there.

    Args:
        run: the MLflow run.
        name: what is trained, for people.
        project: whose training it is: several projects may share a Prefect server.
        iterations: rounds of full and sparse phase.
    """

    def __init__(self, run: RunHandle, *, name: str, project: str, iterations: int = 1) -> None:
        self._run = run
        self._name = name
        self._key = artifact_key("training", project, name)
        self._iterations = iterations
        self._log = get_run_logger()
        self._pending: list[tuple[int, dict[str, float]]] = []
        self._last = Progress("", 0, 0)
        self._started = self._logged = time.monotonic()
        self._flush_at = self._update_at = self._started + FLUSH_SECONDS
        self._artifact: UUID | None = None
        shown = _BARS.get()
        self._bars = shown[0] if shown is not None else None
        self._bar = self._bars.add_task(name, total=1.0) if self._bars is not None else None

    def __enter__(self) -> ProgressReporter:
        with self._prefect():
            created = create_progress_artifact(progress=0.0, key=self._key, description=f"training of {self._name}")
            self._artifact = cast(UUID, created)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
        try:
            self._flush()
        except ServiceError as away:
            if error is None:
                raise
            error.add_note(f"besides, {away}")
        if error is None:
            self._update(100.0)
            seconds = round(time.monotonic() - self._started)
            self._log.info("trained in %d:%02d:%02d", seconds // 3600, seconds // 60 % 60, seconds % 60)
            if self._bars is not None:
                self._bars.console.print(f"{self._name}: trained in {seconds} s", markup=False)

    def __call__(self, progress: Progress) -> None:
        """Take in one step."""
        before, self._last = self._last, progress
        if (progress.stage, progress.iteration) != (before.stage, before.iteration):
            self._enter(progress)
        if progress.metrics:
            # A phase has as many steps in each iteration: this number is the same in a training that was resumed.
            self._pending.append((progress.iteration * progress.steps + progress.step, dict(progress.metrics)))
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=self._share, description=f"{self._name}: {self._where}")
        now = time.monotonic()
        if now >= self._flush_at:
            self._flush_patiently()
        if now >= self._update_at:
            self._update(100.0 * self._share)
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._log.info(self._where)

    @property
    def _where(self) -> str:
        last = self._last
        return f"{last.stage} phase, step {last.step} of {last.steps}" if last.steps else f"{last.stage}"

    @property
    def _share(self) -> float:
        """How much is done, in [0, 1]; selection counts as the end of the full phase, the head phase as nothing."""
        last = self._last
        if last.stage == "head":
            return 0.0
        done = last.step / last.steps if last.steps else 0.0
        return (2 * last.iteration + (last.stage != "full") + done) / (2 * self._iterations)

    def _enter(self, progress: Progress) -> None:
        what = "selection of the support" if progress.stage == "selection" else f"{progress.stage} phase"
        of = f" of iteration {progress.iteration + 1}" if self._iterations > 1 else ""
        self._log.info("%s%s", what, of)

    def _flush_patiently(self) -> None:
        try:
            self._flush()
            self._flush_at = time.monotonic() + FLUSH_SECONDS
        except ServiceError as error:
            self._log.warning("metrics are kept for later: %s", error)
            self._flush_at = time.monotonic() + AWAY_SECONDS

    def _flush(self) -> None:
        while self._pending:
            step, metrics = self._pending[0]
            self._run.log_metrics(metrics, step)
            del self._pending[0]

    def _update(self, percent: float) -> None:
        self._update_at = time.monotonic() + FLUSH_SECONDS
        if self._artifact is not None:
            with self._prefect():
                update_progress_artifact(self._artifact, progress=round(percent, 1))

    @contextmanager
    def _prefect(self) -> Iterator[None]:
        """Go on without Prefect's API: progress is for people, the training does not depend on it."""
        try:
            yield
        except httpx.HTTPError as error:
            self._log.warning("Prefect did not take the progress: %s: %s", type(error).__name__, error)
            self._update_at = time.monotonic() + AWAY_SECONDS
