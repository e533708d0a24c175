"""Everything that exists is a run in MLflow.

A *product* (an SFT, a cell, a matrix) is a run with the tag ``ltsft.key``; a FINISHED run says that the product exists.
`Tracker` talks to MLflow through `MlflowClient` alone: no global state, safe from several threads and processes.

    RUNNING, KILLED   the work was cut off (signal, service away, bug): the next attempt goes on in the same run
    FAILED            a verdict (bad data, a training that cannot go on): the next attempt is a new run
    FINISHED          the product exists

Errors of MLflow, of its database and of its artifact store leave this file as `ServiceError`. Retries on network
trouble are MLflow's own (``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` and friends, see docs/mlflow.md); a busy database is
waited for (`tasks.tracking.database`). mlflow is imported when the first `Tracker` is made: it takes seconds, and reads
the environment.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from ltsft.errors import ServiceError, StoredFileError
from tasks.settings import Settings, read_settings
from tasks.storage import Bucket, fetch_folder
from tasks.tracking.connection import Connection, mlflow_program
from tasks.tracking.database import no_collection, patiently
from tasks.tracking.inputs import DataInput
from tasks.tracking.records import (
    ATTEMPTS,
    FLOW_RUN,
    KEY,
    KIND,
    PARENT_RUN,
    SUBJECT,
    Child,
    FailedRun,
    FinishedRun,
    NewRun,
    OpenRun,
    cut_tags,
    flatten_params,
    git_tags,
    user_name,
)
from tasks.tracking.runs import RunHandle
from tasks.tracking.saved_views import VIEWS, SavedView, link

if TYPE_CHECKING:
    from mlflow.entities import Run

LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows its pages if it is not told otherwise."""
_PAGE = 1000  # runs in one answer
_NEVER = datetime.fromtimestamp(0, UTC)
_FRESH_SECONDS = 60.0
_CLOCKS_DIFFER = timedelta(minutes=10)  # an end is told by the clock of the machine that did the work


class Tracker(Connection):
    """One MLflow experiment, as the record of what exists.

    Args:
        tracking_uri: where MLflow is: ``https://...``, ``postgresql://...``, ``sqlite:////folder/mlflow.db``.
        experiment: name of the experiment; created when it is missing.
        artifact_location: folder or URL of the artifacts, used only when the experiment is created.
        cache_folder: where artifacts of a remote store are kept once downloaded; a temporary folder without it.
        git_commit: the commit to log where the working folder is not a checkout.

    Raises:
        ServiceError: MLflow cannot be reached or refuses.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        experiment: str,
        artifact_location: str | None = None,
        cache_folder: Path | None = None,
        git_commit: str | None = None,
    ) -> None:
        super().__init__(tracking_uri, experiment=experiment, artifact_location=artifact_location)
        self._cache_folder = cache_folder
        self._known: dict[str, FinishedRun] = {}  # by run id, as read at the time below
        self._read_at = 0.0
        self._reading = threading.Lock()
        self._source_tags = {
            "mlflow.source.name": "ltsft",
            "mlflow.user": user_name(),
            **git_tags(Path.cwd(), git_commit),
        }

    @classmethod
    def of_project(cls, name: str, store_folder: str | Path, *, settings: Settings | None = None) -> Tracker:
        """Open the experiment of a project: in the MLflow that the environment names, else in SQLite in its store."""
        settings = settings or read_settings()
        return cls(
            settings.resolve_tracking_uri(store_folder),
            experiment=name,
            artifact_location=settings.resolve_artifact_location(store_folder),
            cache_folder=Path(store_folder).absolute() / "downloads",
            git_commit=settings.git_commit,
        )

    @classmethod
    def exists(cls, name: str, store_folder: str | Path, *, settings: Settings | None = None) -> bool:
        """Whether the experiment of a project exists; nothing is created.

        Raises:
            ServiceError: MLflow cannot be reached or refuses.
        """
        uri = (settings or read_settings()).resolve_tracking_uri(store_folder)
        local = re.fullmatch(r"sqlite:///([^?]+)", uri)
        if local is not None and not Path(local[1]).exists():
            return False
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            return MlflowClient(tracking_uri=uri).get_experiment_by_name(name) is not None
        except MlflowException as error:
            shown = re.sub(r"//[^/@]*@", "//***@", uri)
            raise ServiceError(f"MLflow at {shown} cannot be asked for experiment {name!r}: {error}") from error

    def open_run(self, new: NewRun) -> RunHandle:
        """Open the run of a product, or go on with the one that a killed process left behind.

        The caller holds the lock of the key: a RUNNING run of the same key is taken for one whose process is gone.

        Args:
            new: the run.

        Returns:
            A handle on the run; as a context manager it finishes the run, or says why it did not.

        Raises:
            ServiceError: MLflow cannot be reached or refuses.
        """
        all_tags = {**self._source_tags, **new.all_tags}
        flat = flatten_params(new.params)
        self.arrange()
        with self.service(f"open the run {new.name!r}"):
            unfinished = self._unfinished(new.key)
            if unfinished is None:
                run_id = self._create_run(new.name, {**all_tags, ATTEMPTS: "1"})
            else:
                run_id = unfinished.info.run_id
                patiently(partial(self.client.update_run, run_id, status="RUNNING", name=new.name))
                all_tags[ATTEMPTS] = str(int(unfinished.data.tags.get(ATTEMPTS, "1")) + 1)
                flat = _missing(flat, unfinished.data.params)
                self.write(run_id, tags=all_tags)
            self.write(run_id, params=flat)
            self._log_inputs(run_id, new.inputs)
        return RunHandle(self, run_id=run_id, name=new.name, is_resumed=unfinished is not None)

    def ui_command(self) -> str:
        """Say what starts MLflow's pages on this machine; empty where a server shows them already."""
        if self._is_served:
            return ""
        return shlex.join([mlflow_program(), "ui", "--backend-store-uri", self.shown_uri])

    def ui_link(self, view: SavedView = VIEWS[0]) -> str:
        """Give the address of a view in MLflow's pages."""
        return link(self.shown_uri if self._is_served else LOCAL_PAGES, self.experiment_id, view)

    def run_page(self, run_id: str) -> str:
        """Give the address of a run's page, relative to MLflow's others."""
        return f"#/experiments/{self.experiment_id}/runs/{run_id}"

    @property
    def _is_served(self) -> bool:
        return self.shown_uri.startswith(("http://", "https://"))

    def _log_inputs(self, run_id: str, inputs: Sequence[DataInput]) -> None:
        """Tell MLflow which data a run reads; what it knows of already stays."""
        if not inputs:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        made = [
            DatasetInput(
                Dataset(
                    name=each.name,
                    digest=each.digest,
                    source_type="local"
                    if all(source.partition(":")[2].startswith("/") for source in each.sources)
                    else "http",
                    source=json.dumps({"uri": " ".join(each.sources)}),
                ),
                [InputTag(key="mlflow.data.context", value=each.context)],
            )
            for each in inputs
        ]
        patiently(partial(self.client.log_inputs, run_id, made))

    def find(self, key: str) -> FinishedRun | None:
        """Give the newest FINISHED run with this key, or None."""
        with self.service(f"look for key {key}"):
            runs = self.client.search_runs(
                [self.experiment_id],
                f"attributes.status = 'FINISHED' and tags.`{KEY}` = '{key}'",
                max_results=1,
                order_by=["attributes.end_time DESC"],
            )
        return FinishedRun.of(runs[0]) if runs else None

    def records(self, *, kind: str | None = None) -> list[FinishedRun]:
        """List every product that exists, newest first: one query, read in pages.

        Within a minute of the last such query only what finished since is asked for, so that the plans of many flow
        runs in one process cost one reading; a run that is deleted in that minute is still listed (`find` knows).

        Args:
            kind: only products of this kind.
        """
        with self._reading:
            is_fresh = bool(self._known) and time.monotonic() - self._read_at < _FRESH_SECONDS
            newest = max((record.end for record in self._known.values()), default=_NEVER)
            since = newest - _CLOCKS_DIFFER if is_fresh else _NEVER
            found = self.search(
                f"attributes.status = 'FINISHED' and tags.`{KEY}` != '' "
                f"and attributes.end_time >= {round(since.timestamp() * 1000)}"
            )
            if not is_fresh:
                self._known, self._read_at = {}, time.monotonic()
            self._known.update({run.info.run_id: FinishedRun.of(run) for run in found})
            known = sorted(self._known.values(), key=lambda record: record.end, reverse=True)
        return [record for record in known if kind is None or record.kind == kind]

    def latest_failed(self, records: Sequence[FinishedRun] | None = None) -> dict[str, FailedRun]:
        """Give, by subject, the failure of each subject whose newest finished attempt FAILED.

        Args:
            records: what `records` gave, when it is at hand, to save a query.
        """
        failed = self.search(f"attributes.status = 'FAILED' and tags.`{SUBJECT}` != ''")
        newest: dict[str, datetime] = {}
        for record in (self.records() if records is None else records) if failed else ():
            newest[record.subject] = max(record.end, newest.get(record.subject, record.end))
        found: dict[str, FailedRun] = {}
        for failure in sorted(map(FailedRun.of, failed), key=lambda f: f.end):
            if failure.subject not in newest or failure.end > newest[failure.subject]:
                found[failure.subject] = failure
        return found

    def open_runs(self) -> list[OpenRun]:
        """List the runs that are not ended, with the flow run that each was opened by."""
        found = self.search(f"attributes.status = 'RUNNING' and tags.`{KEY}` != ''")
        return [
            OpenRun(run.info.run_id, run.data.tags.get(SUBJECT, ""), run.data.tags.get(FLOW_RUN, "")) for run in found
        ]

    def interrupt(self, run_id: str, reason: str) -> None:
        """End a run that nobody works on as KILLED; the next attempt goes on in it."""
        RunHandle(self, run_id=run_id, name=run_id, is_resumed=True).interrupt(reason)

    def log_children(self, parent: RunHandle, children: Iterable[Child]) -> dict[str, str]:
        """Put finished runs under a parent, such as the cells of a matrix; those already there (by name) are left.

        They are no products (they have no key): a cell scored in this matrix is a product with a run of its own.

        Returns:
            The run id by name.
        """
        with self.service(f"log the children of {parent.name!r}"):
            known = {run.info.run_name: run for run in self.search(f"tags.`{PARENT_RUN}` = '{parent.run_id}'")}
            ids = {name: run.info.run_id for name, run in known.items()}
            for child in children:
                if child.name in known and known[child.name].info.status == "FINISHED":
                    continue
                tags = {**self._source_tags, **child.tags, KIND: child.kind, SUBJECT: child.subject}
                tags[PARENT_RUN] = parent.run_id
                if child.name not in ids:
                    ids[child.name] = self._create_run(child.name, tags)
                handle = RunHandle(self, run_id=ids[child.name], name=child.name, is_resumed=child.name in known)
                there = known[child.name].data.params if child.name in known else {}
                self.write(handle.run_id, params=_missing(flatten_params(child.params), there))
                handle.log_metrics(child.metrics)
                handle.finish()
        return ids

    def download(self, run_id: str, artifact_path: str) -> Path:
        """Give a local path of an artifact (a file or a folder) of a run.

        From a store of local files it is the artifact itself, not a copy: do not write to it. From a remote store it is
        downloaded once into the cache folder and is whole or not there.

        Raises:
            StoredFileError: there is no such run or artifact.
            ServiceError: the store cannot be reached.
        """
        with self.service(f"fetch {artifact_path} of run {run_id}"):
            from mlflow.artifacts import download_artifacts

            uri = self.client.get_run(run_id).info.artifact_uri
            if uri.startswith(("/", "file:")):
                found = Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri, artifact_path)
                if not found.exists():
                    raise StoredFileError(f"run {run_id} has no artifact {artifact_path!r} under {uri}")
                return found
            if uri.startswith("s3://"):
                return self._fetch_from_s3(uri, run_id, artifact_path)
            fetch = partial(
                download_artifacts, run_id=run_id, artifact_path=artifact_path, tracking_uri=self.tracking_uri
            )
            if self._cache_folder is None:
                return Path(fetch())
            target = self._cache_folder / run_id / artifact_path
            with FileLock(_made(self._cache_folder) / f"{run_id}.lock"):
                if not target.exists():
                    with tempfile.TemporaryDirectory(dir=self._cache_folder) as unpacked:
                        Path(fetch(dst_path=unpacked)).replace(_made(target.parent) / target.name)
            return target

    def _fetch_from_s3(self, uri: str, run_id: str, artifact_path: str) -> Path:
        folder = _made(self._cache_folder or Path(tempfile.mkdtemp(prefix="ltsft-")))
        target = folder / run_id / artifact_path
        with FileLock(folder / f"{run_id}.lock"):
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=folder) as fetched:
                    whole = Path(fetched, target.name)
                    fetch_folder(Bucket(uri), artifact_path, whole)
                    whole.replace(_made(target.parent) / target.name)
        return target

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        create = partial(self.client.create_run, self.experiment_id, tags=cut_tags(tags), run_name=name)
        return str(patiently(create).info.run_id)

    def _unfinished(self, key: str) -> Run | None:
        for status in ("RUNNING", "KILLED", "SCHEDULED"):
            runs = self.client.search_runs(
                [self.experiment_id], f"attributes.status = '{status}' and tags.`{KEY}` = '{key}'", max_results=1
            )
            if runs:
                return runs[0]
        return None

    def search(self, filter_string: str) -> list[Run]:
        """Read all pages; oldest first, so that runs that are added meanwhile do not shift the pages."""
        runs: dict[str, Run] = {}
        token: str | None = None
        with self.service("list runs"), no_collection():
            while True:
                page = self.client.search_runs(
                    [self.experiment_id],
                    filter_string,
                    max_results=_PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                runs.update({run.info.run_id: run for run in page})
                token = page.token
                if not token:
                    return list(runs.values())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _missing(params: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """Give the parameters that a run does not have yet; MLflow refuses to change one."""
    return {name: value for name, value in params.items() if name not in there}
