"""Two nodes that train together learn what two processes of one node learn, bit for bit, also when one has to go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ltsft.errors import ServiceError
from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.slow  # tests/tasks/training/test_nodes.py is the quick part
ROOT = Path(__file__).parents[2]


@contextmanager
def other_node(log: Path, *, stop_when: Callable[[], bool] = lambda: False) -> Iterator[subprocess.Popen[str]]:
    """Another node, as a pod of index 1 starts; asked to stop once something is so."""
    environment = os.environ | {"JOB_COMPLETION_INDEX": "1", "LTSFT_FIRST_NODE": "127.0.0.1"}
    with log.open("w") as said:
        node = subprocess.Popen([sys.executable, "-m", "tasks.pod"], env=environment, stderr=said, text=True, cwd=ROOT)

    def watch() -> None:
        while node.poll() is None:
            if stop_when():
                node.send_signal(signal.SIGTERM)
                return
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield node
    finally:
        node.kill()
        node.wait()


def test_two_nodes_learn_what_two_processes_learn_also_when_one_is_asked_to_stop(
    tiny_project: Path, prefect_server: None, opened: Callable[[Path], Workspace], set_value: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, nodes_port: int, tmp_path: Path,
) -> None:  # fmt: skip
    from flows.adapt_language import adapt_language

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for part in ("full", "sparse"):
        set_value(tiny_project, f"recipes.language.{part}", {"max_steps": 30, "min_steps": 30, "learning_rate": 1e-3})
    set_value(tiny_project, "store.checkpoint_minutes", 0.001)
    ref, making = ProjectRef(file=str(tiny_project)), tmp_path / "store" / "making"
    set_value(tiny_project, "recipes.language.processes", 2)
    alone = adapt_language(ref, "aa")
    set_value(tiny_project, "recipes.language.processes", 1)
    set_value(tiny_project, "recipes.language.nodes", 2)

    def has_checkpoint() -> bool:
        return any(making.glob("*/0-full/checkpoint-*/whole.json"))

    with other_node(tmp_path / "first.log", stop_when=has_checkpoint) as node:
        with pytest.raises(ServiceError, match="another node was asked to stop"):
            adapt_language(ref, "aa")
        assert node.wait(30) == 0, (tmp_path / "first.log").read_text()[-2000:]
    stopped_at = max(int(f.parent.name.split("-")[1]) for f in making.glob("*/0-full/checkpoint-*/whole.json"))
    assert 0 < stopped_at < 30, "it was stopped in the middle, and saved"
    with other_node(tmp_path / "second.log") as node:
        together = adapt_language(ref, "aa")
        assert node.wait(30) == 0, (tmp_path / "second.log").read_text()[-2000:]

    workspace = opened(tiny_project)
    one, two = (workspace.tracker.download(run, "sft") / "sft.safetensors" for run in (alone, together))
    assert one.read_bytes() == two.read_bytes()
    points = workspace.tracker.client.get_metric_history(together, "full.loss")
    assert [point.step for point in points] == list(range(1, 31)), "progress goes on where it was"
