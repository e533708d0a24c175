"""A training that is asked to stop gives its key back as soon as its checkpoint is safe."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sigterm import Stopped

from ltsft.errors import ConflictError
from ltsft.project.plan import language_subject
from ltsft.project.project import ProjectRef
from tasks.settings import read_settings
from tasks.storage import Bucket
from tasks.tracking.records import FAILURE
from tasks.workspace.workspace import Workspace, open_workspace

pytestmark = pytest.mark.integration


@pytest.fixture
def shared_by_machines(tiny_project: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose leases and checkpoints are in S3, with a training that would last for long."""
    monkeypatch.setenv("LTSFT_BUCKET", bucket.location)
    read_settings.cache_clear()
    settings = yaml.safe_load(tiny_project.read_text())
    phase = {"max_steps": 5000, "min_steps": 5000, "learning_rate": 1e-3}
    settings["recipes"]["language"] = {**settings["recipes"]["language"], "full": phase}
    settings["store"]["checkpoint_minutes"] = 0.005
    tiny_project.write_text(yaml.safe_dump(settings, sort_keys=False))
    yield tiny_project
    read_settings.cache_clear()


def lease_of(workspace: Workspace, key: str) -> dict[str, Any]:
    assert workspace.bucket is not None
    return dict(json.loads(workspace.bucket.get(f"leases/{key}.json").data))


def test_an_evicted_training_gives_its_key_back_before_its_process_ends(
    prefect_server: None, shared_by_machines: Path, sigterm_raises: None
) -> None:
    from flows.adapt_language import adapt_language

    ref = ProjectRef(file=str(shared_by_machines))
    workspace = open_workspace(ref)
    key = workspace.plan.step(language_subject("aa")).product.key
    checkpoints = workspace.bucket / "checkpoints" / key

    def evict() -> None:
        end = time.monotonic() + 120
        while not any(entry.name.endswith(".json") for entry in checkpoints.entries()) and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=evict, daemon=True).start()
    with pytest.raises(BaseException):  # noqa: B017 - Stopped, or what Prefect makes of it
        adapt_language(ref, "aa")

    assert lease_of(workspace, key)["free"] is True
    (run,) = workspace.tracker.client.search_runs([workspace.tracker.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.tags[FAILURE].startswith("asked to stop; saved the full phase"), "it was closed by the training"


def test_after_it_was_handed_over_an_attempt_leaves_key_and_run_alone(
    shared_by_machines: Path, opened: Callable[[Path], Workspace]
) -> None:
    first, second = opened(shared_by_machines), opened(shared_by_machines)
    step = first.plan.step(language_subject("aa"))
    key = step.product.key

    try:
        with first.claim(key, "language aa"), first.open_run(step) as run:
            first.hand_over(key, run, "asked to stop")
            assert first.tracker.client.get_run(run.run_id).info.status == "KILLED"
            with pytest.raises(ConflictError, match="given back"):
                first.check_claim(key)
            with second.claim(key, "language aa"), second.open_run(step) as successor:
                assert successor.run_id == run.run_id
                running = second.tracker.client.get_run(run.run_id).info.status
                second.check_claim(key)
                successor.finish()
            raise Stopped
    except Stopped:
        pass

    assert running == "RUNNING"
    assert first.tracker.client.get_run(run.run_id).info.status == "FINISHED", "the first did not close it again"
    assert lease_of(first, key)["free"] is True
