"""A connection to MLflow: writes in few requests that wait for a busy database, errors as `ServiceError`."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ltsft.errors import LtsftError, ServiceError
from tasks.tracking.database import create_sqlite, patiently
from tasks.tracking.faults import fault_of
from tasks.tracking.records import NOT_FINITE, cut_tags
from tasks.tracking.saved_views import desk_tags

_METRIC_BATCH, _OTHER_BATCH = 1000, 100  # MLflow's limits for one log_batch


class Connection:
    """One experiment of an MLflow, as something that runs are written to.

    Args:
        tracking_uri: where MLflow is: ``https://...``, ``postgresql://...``, ``sqlite:////folder/mlflow.db``.
        experiment: name of the experiment; created when it is missing.
        artifact_location: folder or URL of the artifacts, used only when the experiment is created.

    Raises:
        ServiceError: MLflow cannot be reached or refuses.
    """

    def __init__(self, tracking_uri: str, *, experiment: str, artifact_location: str | None = None) -> None:
        self.tracking_uri = tracking_uri
        self.shown_uri = re.sub(r"//[^/@]*@", "//***@", tracking_uri)
        self.experiment = experiment
        with self.service(f"open experiment {experiment!r}"):
            create_sqlite(tracking_uri)
            from mlflow import MlflowClient

            self.client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self.experiment_id = self._find_experiment(artifact_location)
        self._is_arranged, self._arranging = False, threading.Lock()

    def arrange(self) -> None:
        """Put the saved views and the description of the experiment in order; once for each connection."""
        from mlflow.exceptions import MlflowException

        with self._arranging, self.service(f"write the views of experiment {self.experiment!r}"):
            for is_last in (False, False, True) if not self._is_arranged else ():
                try:
                    self._write_views()
                    break
                except MlflowException:  # another process may have written the same tag at the same moment
                    if is_last:
                        raise
            self._is_arranged = True

    def _write_views(self) -> None:
        there = dict(self.client.get_experiment(self.experiment_id).tags)
        for name, value in desk_tags(self.experiment, self.experiment_id, there).items():
            patiently(partial(self.client.set_experiment_tag, self.experiment_id, name, value))

    def write(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write to a run in as few requests as MLflow allows, waiting a little where its database is busy.

        A metric that is not finite is named in a tag instead: one NaN breaks a run's page, and counts as 0 in searches.
        """
        from mlflow.entities import Metric, Param, RunTag

        broken = sorted(name for name, value in (metrics or {}).items() if not math.isfinite(value))
        if broken:
            metrics = {name: value for name, value in (metrics or {}).items() if name not in broken}
            tags = {**(tags or {}), NOT_FINITE: ", ".join(broken)}
        now = time.time_ns() // 1_000_000
        entities: dict[str, list[Any]] = {
            "metrics": [Metric(name, float(value), now, step or 0) for name, value in (metrics or {}).items()],
            "params": [Param(name, value) for name, value in (params or {}).items()],
            "tags": [RunTag(name, value) for name, value in cut_tags(tags or {}).items()],
        }
        for kind, values in entities.items():
            size = _METRIC_BATCH if kind == "metrics" else _OTHER_BATCH
            for i in range(0, len(values), size):
                batch: dict[str, Any] = {kind: values[i : i + size]}
                patiently(partial(self.client.log_batch, run_id, **batch))

    def end(self, run_id: str, status: str) -> None:
        """Give a run its last status: FINISHED, FAILED or KILLED."""
        with self.service(f"end run {run_id}"):
            patiently(partial(self.client.set_terminated, run_id, status=status))

    @contextmanager
    def service(self, action: str) -> Iterator[None]:
        """Turn whatever MLflow, its database or its artifact store raises into a `ServiceError` that names it."""
        try:
            yield
        except LtsftError:
            raise
        except Exception as error:
            shown = str(error).replace(self.tracking_uri, self.shown_uri)
            raise fault_of(error, place=self.shown_uri, action=action, told=shown) from error

    def _find_experiment(self, artifact_location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=artifact_location))
            except MlflowException:  # another process may have been first
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            place, program = shlex.quote(self.shown_uri), shlex.quote(mlflow_program())
            raise ServiceError(
                f"experiment {self.experiment!r} was deleted in MLflow at {self.shown_uri}; rename the project, or "
                f"restore it: MLFLOW_TRACKING_URI={place} {program} experiments restore "
                f"--experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)


def mlflow_program() -> str:
    """Give the ``mlflow`` of this installation, as it can be pasted."""
    program = shutil.which("mlflow") or str(Path(sys.executable).with_name("mlflow"))
    return os.path.relpath(program) if Path(program).is_relative_to(Path.cwd()) else program
