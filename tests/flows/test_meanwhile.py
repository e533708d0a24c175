"""What arrives or changes while a flow runs is the next run's work."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration


@contextmanager
def meanwhile(store: Path, change: Callable[[], None]) -> Iterator[None]:
    """Change something once a training of the block has begun: by then its flow has planned."""
    over = threading.Event()

    def watch() -> None:
        while not any((store / "making").glob("*/*")):
            if over.wait(0.01):
                return
        change()
        over.set()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
        assert over.is_set(), "nothing was trained"
    finally:
        over.set()
        thread.join()


def test_a_language_and_a_text_that_arrive_during_retrain_are_left_to_the_next_run(
    changeable_project: Path, opened: Callable[[Path], Workspace], rerun: Callable[[Path], Any]
) -> None:
    data = changeable_project.parent / "data"
    store = opened(changeable_project).store
    bb, cc = data / "bb.txt", data / "cc.txt"
    bb.write_text("bako " + bb.read_text())

    def arrive() -> None:
        cc.write_text("bako " + cc.read_text())
        for name in (".txt", "-test.conllu"):
            shutil.copy(data / f"aa{name}", data / f"dd{name}")
        settings = yaml.safe_load(changeable_project.read_text())
        settings["languages"]["dd"] = {"name": "Language dd", "script": "Latn", "text": "text:dd.txt"}
        settings["target_tasks"]["pos"]["test"]["dd"] = "conllu:dd-test.conllu"
        whole = changeable_project.with_suffix(".new")
        whole.write_text(yaml.safe_dump(settings, sort_keys=False))
        whole.replace(changeable_project)

    with meanwhile(store, arrive):
        state = rerun(changeable_project)

    assert state.is_completed(), state.message
    later = "arrived or changed meanwhile and left to the next run: cell pos cc, cell pos dd"
    assert state.message == f"7 of 8 products are up to date; {later}"
    stale = {step.product.subject for step in opened(changeable_project).plan.stale}
    assert stale == {"language cc", "task pos cc seed 1", "cell pos cc", "language dd", "cell pos dd"}
