"""An open run in MLflow: what is logged to it, and how it ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ltsft.errors import ConflictError, ServiceError, is_verdict
from tasks.storage import Bucket, publish
from tasks.tracking.connection import Connection
from tasks.tracking.records import DESCRIPTION, FAILURE, FAILURE_TYPE, NOTE, flatten_params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROXY_BYTES = 100_000_000
"""The largest file that goes through a tracking server."""
_LOG = logging.getLogger(__name__)


class RunHandle:
    """An open run: what `Tracker.open_run` gives.

    As a context manager it ends the run, unless that was done inside: FINISHED without an error, FAILED on a
    verdict, KILLED on anything else, `ServiceError` included (to be resumed).
    """

    def __init__(self, connection: Connection, *, run_id: str, name: str, is_resumed: bool) -> None:
        self.run_id, self.name, self.is_resumed = run_id, name, is_resumed
        self._connection, self._client = connection, connection.client
        self._logged: dict[str, set[int]] = {}
        self._has_ended = False
        self._lock = threading.Lock()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics in one request.

        With a step, a point that the run has already (a resumed training goes over some steps twice) is not logged
        again: a chart has one value for each step. Without a step, the value is the run's result and replaces the last.

        Args:
            metrics: values by name; names have letters, digits and ``_ - . / :``.
            step: optimizer step, or None for a result.
        """
        with self._lock, self._connection.service(f"log metrics of {self.name!r}"):
            if step is not None:
                metrics = {name: value for name, value in metrics.items() if step not in self._steps(name)}
            self._connection.write(self.run_id, metrics=metrics, step=step)
            if step is not None:
                for name in metrics:
                    self._logged[name].add(step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters that are known only once the run is open; MLflow refuses to change one."""
        with self._connection.service(f"log parameters of {self.name!r}"):
            self._connection.write(self.run_id, params=flatten_params(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a tag that is there already is replaced."""
        with self._connection.service(f"tag {self.name!r}"):
            self._connection.write(self.run_id, tags=tags)

    def log_folder(self, folder: str | Path, artifact_path: str, *, manifest: str | None = None) -> None:
        """Store a folder's files as artifacts; readers see them once the run is FINISHED.

        Args:
            folder: with files.
            artifact_path: folder of the run that they go to.
            manifest: name of the file that makes the others one product. Where artifacts are in S3 it is written last
                and only if there is none: a folder that an earlier attempt at this run published stays as it is.
        """
        if not Path(folder).is_dir():
            raise ServiceError(f"cannot log {folder} to run {self.name!r}: there is no such folder")
        if (bucket := self._bucket()) is not None:
            publish(bucket / artifact_path, Path(folder), manifest)
            return
        for file in Path(folder).rglob("*"):
            self._refuse_large(file)
        with self._connection.service(f"store {artifact_path} of {self.name!r}"):
            self._client.log_artifacts(self.run_id, str(folder), artifact_path)

    def log_file(self, file: str | Path, artifact_path: str | None = None) -> None:
        """Store a file as an artifact, in the folder `artifact_path` of the run."""
        if (bucket := self._bucket()) is not None:
            bucket.upload(Path(file), f"{artifact_path}/{Path(file).name}" if artifact_path else Path(file).name)
            return
        self._refuse_large(Path(file))
        with self._connection.service(f"store {Path(file).name} of {self.name!r}"):
            self._client.log_artifact(self.run_id, str(file), artifact_path)

    def log_figure(self, figure: Figure, artifact_file: str) -> None:
        """Store a matplotlib figure, such as ``figures/density.png``."""
        with self._connection.service(f"store {artifact_file} of {self.name!r}"):
            self._client.log_figure(self.run_id, figure, artifact_file)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Store text, such as ``matrix.md`` or ``report.html``."""
        with self._connection.service(f"store {artifact_file} of {self.name!r}"):
            self._client.log_text(self.run_id, text, artifact_file)

    def _bucket(self) -> Bucket | None:
        """Give the artifacts' place if it is in S3: then they go there, and not by way of MLflow."""
        return Bucket(self._artifact_uri) if self._artifact_uri.startswith("s3://") else None

    @cached_property
    def _artifact_uri(self) -> str:
        with self._connection.service(f"look at {self.name!r}"):
            return str(self._client.get_run(self.run_id).info.artifact_uri)

    def _refuse_large(self, file: Path) -> None:
        """Keep large files away from the tracking server, which would pass them on through its memory."""
        if self._artifact_uri.startswith(("mlflow-artifacts:", "http")) and file.is_file():
            size = file.stat().st_size
            if size > PROXY_BYTES:
                experiment = self._connection.experiment
                raise ServiceError(
                    f"{file.name} has {size / 1e6:.0f} MB and may not go through the tracking server (at most "
                    f"{PROXY_BYTES / 1e6:.0f} MB): experiment {experiment!r} keeps its artifacts behind "
                    "it; set LTSFT_ARTIFACT_LOCATION=s3://... and run ltsft bootstrap before the first run (a location "
                    "is fixed when an experiment is created; rename the project to get a new one)"
                )

    def finish(self) -> None:
        """Say that the product exists: everything about it is logged and stored."""
        self._end("FINISHED")

    def fail(self, reason: str, *, error_type: str = "") -> None:
        """Say that this attempt is over with a verdict, and which; the next attempt is a new run."""
        self._tell(f"**Failed.** {reason}", {FAILURE: reason, FAILURE_TYPE: error_type})
        self._end("FAILED")

    def interrupt(self, reason: str) -> None:
        """Say that the work was cut off; the next attempt goes on in this run."""
        self._tell(f"**Interrupted; the next attempt goes on from here.** {reason}", {FAILURE: reason})
        self._end("KILLED")

    def hand_over(self, reason: str) -> None:
        """Say that the work was cut off, if MLflow can be told, and leave the run alone from now on."""
        try:
            self.interrupt(reason)
        except ServiceError as error:
            _LOG.warning("run %r is left open: %s", self.name, error)
        self._has_ended = True

    def __enter__(self) -> RunHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_ended:  # what goes wrong after `finish` does not take the product away
            return
        if error is None:
            self.finish()
            return
        if isinstance(error, ConflictError):  # another attempt has this run now
            return
        try:
            if is_verdict(error):
                self.fail(str(error), error_type=type(error).__name__)
            else:
                self.interrupt(f"{type(error).__name__}: {error}")
        except ServiceError as second:  # the first error is the one to tell; the run stays RUNNING and is resumed
            error.add_note(f"besides, {second}")

    def _end(self, status: str) -> None:
        if status == "FINISHED" and self.is_resumed:
            self._clear_note()
        self._connection.end(self.run_id, status)
        self._has_ended = True

    def _tell(self, ended: str, tags: Mapping[str, str]) -> None:
        """Put how an attempt ended over the run's description."""
        with self._connection.service(f"tag {self.name!r}"):
            described = self._client.get_run(self.run_id).data.tags.get(DESCRIPTION, "")
            self._connection.write(self.run_id, tags={**tags, NOTE: f"{ended}\n\n{described}".strip()})

    def _clear_note(self) -> None:
        with self._connection.service(f"tag {self.name!r}"):
            tags = self._client.get_run(self.run_id).data.tags
            for name in (FAILURE, FAILURE_TYPE, NOTE):
                if name in tags:
                    self._client.delete_tag(self.run_id, name)
            if DESCRIPTION in tags:
                self._connection.write(self.run_id, tags={NOTE: tags[DESCRIPTION]})

    def _steps(self, name: str) -> set[int]:
        """Give the steps that have a value of this metric; asked from MLflow once, and only for a resumed run."""
        if name not in self._logged:
            history = self._client.get_metric_history(self.run_id, name) if self.is_resumed else []
            self._logged[name] = {point.step for point in history}
        return self._logged[name]
