"""What the tasks of a flow run work with: the project, its base, its record in MLflow and its folders."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ltsft.base import Base, check_length, load_base, locate_base
from ltsft.config import Source
from ltsft.data import ensure_local, fingerprint
from ltsft.errors import TrainingError
from ltsft.project import Fingerprints, Plan, Project, ProjectRef, Step, make_plan
from ltsft.sft import SFT, load_sft
from ltsft.training import check_augmentations
from tasks.arrivals import inbox_overrides
from tasks.orchestration import drop_tracebacks_of_verdicts
from tasks.settings import read_settings
from tasks.storage import Bucket
from tasks.tracking import FLOW_RUN, NewRun, RunHandle, Tracker, describe, inputs_of
from tasks.workspace.base_prints import BasePrints, base_prints
from tasks.workspace.checkpoints import Checkpoints
from tasks.workspace.leases import Lease, leased

SFT_FOLDER = "sft"
REPORT_FOLDER = "validation"
HELD_OUT = "held_out/sequences.npy"
WAIT_POLL_SECONDS = 0.5
_LOG = logging.getLogger(__name__)


@dataclass
class Workspace:
    """A project that is open. It is made anew for each flow run, so that what changed since is seen."""

    ref: ProjectRef
    project: Project
    tracker: Tracker
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    majorities: dict[str, str | None] = field(default_factory=dict, repr=False)
    _leases: dict[str, Lease] = field(default_factory=dict)

    @cached_property
    def base(self) -> Base:
        """The base that the project names."""
        return _load_base(*self._base_place)

    @property
    def _base_place(self) -> tuple[str, str | None]:
        base = self.project.base
        return locate_base(base.id, data_root=self.project.data_root), base.revision

    def _read_prints(self) -> BasePrints:
        ref = self.base.ref
        return BasePrints(ref.fingerprint, self.base.head_fingerprint, ref.tokenizer_fingerprint, self.base.positions)

    @property
    def store(self) -> Path:
        """The project's store folder."""
        return self.project.store.folder.absolute()

    def fetch(self, sources: tuple[Source, ...]) -> None:
        """Fetch what is missing under the data root from its origin."""
        for source in sources:
            ensure_local(source)

    @cached_property
    def plan(self) -> Plan:
        """What there is to do, as things stood when this was first asked."""
        project = self.project
        check_augmentations(project.recipes, lambda: self.base.tokenizer)
        base = base_prints(*self._base_place, self.store, self._read_prints)
        for name, recipe in project.recipes.items():
            check_length(recipe.max_length, base.positions, place=f"recipes.{name}.max_length")
        sources = list(project.all_sources().values())
        self.fetch(tuple(sources))
        prints = Fingerprints(
            encoder=base.encoder,
            head=base.head,
            tokenizer=base.tokenizer,
            sources={str(source): fingerprint(source) for source in sources},
        )
        records = self.tracker.records()
        failures = {subject: failure.reason for subject, failure in self.tracker.latest_failed(records).items()}
        return make_plan(project, prints, records, failures=failures)

    def run_of(self, subject: str) -> str | None:
        """Give the run of a product if it exists by now."""
        record = self.tracker.find(self.plan.step(subject).product.key)
        return record.run_id if record is not None else None

    def made(self, subject: str) -> str:
        """Give the run of a product that something else is made from.

        Raises:
            TrainingError: it does not exist yet.
        """
        run_id = self.run_of(subject)
        if run_id is None:
            raise TrainingError(
                f"{subject} does not exist yet and has to be made first; ltsft run makes everything in its order"
            )
        return run_id

    def load_sft(self, run_id: str) -> SFT:
        """Fetch and check an SFT; those that were asked for last are kept, for the task SFT of a row of cells."""
        folder = self.tracker.download(run_id, SFT_FOLDER)
        return _loaded_sft(str(folder), tuple((f.name, f.stat().st_mtime_ns) for f in sorted(folder.glob("*"))))

    def working_folder(self, step: Step) -> Path:
        """Give the folder for what is in the making: one for each key, never shared by two."""
        folder = self.store / "making" / step.product.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove_working_folder(self, step: Step) -> None:
        """Remove what was in the making of a product that is stored, also its checkpoints in S3."""
        shutil.rmtree(self.working_folder(step), ignore_errors=True)
        if self.bucket is not None:
            Checkpoints(self.bucket, step.product.key, self.store).remove()

    @cached_property
    def bucket(self) -> Bucket | None:
        """Where this project keeps what other machines need to see; None where there is only this one."""
        return _bucket_of(self.project)

    @contextmanager
    def checkpoints(self, step: Step) -> Iterator[None]:
        """Fetch the newest checkpoint of a product, and copy new ones away while the block runs."""
        if self.bucket is None:
            yield
            return
        key = step.product.key
        checkpoints = Checkpoints(self.bucket, key, self.working_folder(step), check=partial(self.check_claim, key))
        number = checkpoints.restore()
        if number is not None:
            from prefect.logging import get_run_logger

            get_run_logger().info("%s goes on from checkpoint %d of an earlier attempt", step.product.subject, number)
        with checkpoints:
            yield

    @contextmanager
    def claim(self, key: str, subject: str) -> Iterator[str | None]:
        """Hold the key of a product; whoever wants the same key meanwhile waits, and then finds the product.

        On one machine the lock is a file in the store folder: it goes with the process that holds it, however that
        ends. Where `LTSFT_BUCKET` is set it is a lease in S3 (tasks/workspace/leases.py).

        Args:
            key: of the product.
            subject: what it is, for the log line that says what is waited for.

        Yields:
            The run of the product if it exists already, else None.
        """
        with self._locked(key, subject) if self.bucket is None else self._leased(self.bucket, key, subject):
            record = self.tracker.find(key)
            yield record.run_id if record is not None else None

    def check_claim(self, key: str) -> None:
        """Make sure that a key which was claimed is still ours.

        Raises:
            ConflictError: another run may have taken over.
        """
        if key in self._leases:
            self._leases[key].check()

    def hand_over(self, key: str, run: RunHandle, reason: str) -> None:
        """Let another attempt go on at once, where it may run on another machine: this one writes nothing any more.

        The run is closed before the key is given back, and left alone from then on. Until its process ends this attempt
        may linger, for Prefect to tell its state and for its pod to go.

        Args:
            key: that is claimed.
            run: of the product.
            reason: why this attempt ends.
        """
        if key in self._leases:
            run.hand_over(reason)
            self._leases[key].release()
            _LOG.warning("%s: the key is given back, another attempt can go on", run.name)

    @contextmanager
    def _leased(self, bucket: Bucket, key: str, subject: str) -> Iterator[None]:
        with leased(bucket, key, subject, term_seconds=read_settings().lease_seconds) as lease:
            self._leases[key] = lease
            try:
                yield
            finally:
                del self._leases[key]

    @contextmanager
    def _locked(self, key: str, subject: str) -> Iterator[None]:
        folder = self.store / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _LOG.warning("%s is being made by another run; waiting for it (key %s)", subject, key)
            lock.acquire(poll_interval=WAIT_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def open_run(self, step: Step, *, recipe: dict[str, object] | None = None) -> RunHandle:
        """Open the MLflow run of a product, or go on with the one that a kill left open."""
        from prefect.runtime import flow_run  # prefect takes seconds; showing what is released does without
        from prefect.settings import get_current_settings

        product = step.product
        parents = {need: self.run_of(need) or "" for need in product.needs}
        facts = {"language": product.language, "target_task": product.target_task, "seed": product.seed}
        tags = {
            "ltsft.base": f"{self.base.id}{f'@{self.base.revision}' if self.base.revision else ''}",
            "ltsft.base_fingerprint": self.base.ref.fingerprint,
            "ltsft.parents": ", ".join(f"{need}: {run}" for need, run in parents.items()),
            FLOW_RUN: str(flow_run.get_id() or ""),
            "ltsft.method": self.project.method,
            **{f"ltsft.{name}": str(value) for name, value in facts.items() if value is not None},
        }
        flow_page = flow_run.get_flow_run_ui_url() if get_current_settings().ui_url else None
        about = {need: self.tracker.run_page(run) for need, run in parents.items() if run}
        return self.tracker.open_run(
            NewRun(
                name=product.subject,
                description=describe(product, about, flow_page),
                inputs=inputs_of(self.project, product),
                kind=product.kind,
                subject=product.subject,
                key=product.key,
                parts=product.parts,
                tags=tags,
                params={
                    "method": self.project.method,
                    **{n: v for n, v in facts.items() if v is not None},
                    **(recipe or {}),
                },
            )
        )


def open_workspace(ref: ProjectRef, *, needs_data: bool = True) -> Workspace:
    """Read the project file, add the languages of the inbox, and open the project's record.

    Args:
        ref: the project file.
        needs_data: whether local data must be there; who serves or rolls back has none.

    Raises:
        ConfigError: the project file is wrong.
        ServiceError: MLflow cannot be reached.
    """
    drop_tracebacks_of_verdicts()
    project = ref.load(check_files=needs_data)
    if (bucket := _bucket_of(project)) is not None:
        added = inbox_overrides(project, bucket)
        if added:
            ref = ref.model_copy(update={"overrides": (*ref.overrides, *added)})
            project = ref.load(check_files=needs_data)
    store = project.store.folder.absolute()
    store.mkdir(parents=True, exist_ok=True)
    return Workspace(ref=ref, project=project, tracker=_tracker(project.name, str(store)))


def _bucket_of(project: Project) -> Bucket | None:
    location = read_settings().bucket
    return Bucket(location) / project.name if location is not None else None


@lru_cache(maxsize=8)
def _tracker(name: str, store: str) -> Tracker:
    return Tracker.of_project(name, store)


@lru_cache(maxsize=4)
def _loaded_sft(folder: str, stamp: tuple[tuple[str, int], ...]) -> SFT:
    """Load the SFT of a folder; the stamp tells whether its files are still the same."""
    return load_sft(folder)


def _load_base(id: str, revision: str | None) -> Base:
    folder = Path(id)
    stamp = tuple(sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in folder.glob("*") if f.is_file()))
    return _cached_base(id, revision, stamp)


@lru_cache(maxsize=2)
def _cached_base(id: str, revision: str | None, stamp: tuple[tuple[str, int, int], ...]) -> Base:
    return load_base(id, revision)
