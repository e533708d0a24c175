"""One training by several processes, each with a GPU of its own: torchrun starts them inside the pod.

The process of the flow stays what talks to MLflow, Prefect and S3. It writes a job into the working folder, starts
``python -m torch.distributed.run`` on this very module, and reads the progress that the first of them prints. Asked to
stop, it leaves a file that they look for after each step: they save a checkpoint together and end. With several nodes
each does the same with a folder of its own (tasks/training/nodes.py).
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ltsft.base import Base, load_base, locate_base
from ltsft.data import ensure_local
from ltsft.errors import InterruptedTraining, LtsftError, ServiceError, TrainingError
from ltsft.methods import method_named
from ltsft.project import Project, ProjectRef
from ltsft.sft import save_sft
from ltsft.training import (
    OnProgress,
    Progress,
    checkpoint_files,
    is_first_process,
    join_processes,
    send_files,
    train_sft,
)
from tasks.training.nodes import LOOK_SECONDS, Meeting, await_stop, pass_on_stop
from tasks.training.preparing import language_training, task_training
from tasks.workspace import SFT_FOLDER

JOB, STOP, REFUSED, ERRORS = "job.json", "stop", "refused", "processes.log"
SAVE_SECONDS = 20.0
"""How long processes of several nodes may take to save once they are asked to stop; a lost one would hold them up."""
_SAVED = 75
"""Exit code of processes that were asked to stop and saved a checkpoint."""
_SOURCES = "sources"
_WARNING = "warning"
"""In place of progress: a line for the log of the run."""
_LOG = logging.getLogger(__name__)
_TAIL = 3000


@dataclass(frozen=True)
class Job:
    """What the processes are told: the project, which product, and what `train_sft` gets besides."""

    ref: ProjectRef
    kind: str
    language: str
    target_task: str | None
    sources: dict[str, str]
    more: dict[str, Any]

    @property
    def told(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {**asdict(self), "ref": self.ref.model_dump(mode="json")}


def train_together(
    job: Job,
    folder: Path,
    *,
    processes: int,
    nodes: int = 1,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> None:
    """Train with several processes, on this machine or several; the SFT is in the folder then.

    Args:
        job: what is trained.
        folder: where this node trains.
        processes: of each node.
        nodes: machines, this one included; the others come by themselves (tasks/training/joining.py).
        on_progress: called after each step.
        should_stop: asked several times a second.

    Raises:
        TrainingError: a process failed, with the end of what they said.
        InterruptedTraining: this node or another one was asked to stop, and they saved a checkpoint if they could.
        ServiceError: another node is lost.
    """
    for name in (STOP, REFUSED):
        (folder / name).unlink(missing_ok=True)
    told = {**job.told, "nodes": nodes, "processes": processes, "port": _free_port()}
    (folder / JOB).write_text(json.dumps(told), encoding="utf-8")
    if nodes == 1:
        _conclude(_run(folder, processes, ["--standalone"], on_progress, should_stop), folder)
        return
    with Meeting(nodes, told) as meeting:
        try:
            meeting.gather(should_stop)
            place = [f"--nnodes={nodes}", "--node-rank=0", "--master-addr=127.0.0.1", f"--master-port={told['port']}"]
            _conclude(_run(folder, processes, place, on_progress, should_stop, SAVE_SECONDS), folder)
        except InterruptedTraining as stopped:
            pass_on_stop(should_stop)
            if should_stop():
                raise
            raise ServiceError(f"another node was asked to stop: {stopped}") from stopped
        except _BrokenProcessesError as error:
            await_stop(should_stop)
            if should_stop():
                raise InterruptedTraining("another node is lost, and this one was asked to stop") from error
            raise ServiceError(f"a node is lost, or the nodes do not reach each other: {error}") from error


class _BrokenProcessesError(TrainingError):
    """The processes ended, and none of them said why."""


def start_processes(
    folder: Path, processes: int, place: list[str], *, output: int, errors: int
) -> subprocess.Popen[str]:
    """Start the processes of this node; they share the threads that torch has here.

    Args:
        folder: with the job.
        processes: how many.
        place: which node this is among which, as torchrun's options.
        output: file descriptor for what they print.
        errors: file descriptor for what they say besides.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *place]
    command += ["-m", "tasks.training.together", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))}
    return subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=output, stderr=errors, text=True, start_new_session=True
    )


def end_processes(running: subprocess.Popen[str]) -> None:
    """Kill what is still running: torchrun, and the processes see that it is gone."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def _run(
    folder: Path,
    processes: int,
    place: list[str],
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
    save_seconds: float = math.inf,
) -> int:
    """Run the processes of this node to their end; give their exit code."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    end: float | None = None
    with (folder / ERRORS).open("w") as errors:
        running = start_processes(folder, processes, place, output=subprocess.PIPE, errors=errors.fileno())
        threading.Thread(target=_read, args=(running, lines), name="processes", daemon=True).start()
        try:
            while end is None or time.monotonic() < end:
                if end is None and should_stop():
                    (folder / STOP).touch()
                    end = time.monotonic() + save_seconds
                try:
                    line = lines.get(timeout=LOOK_SECONDS)
                except queue.Empty:
                    continue
                if line is None:
                    return running.wait()
                if not line.startswith("{"):
                    continue
                if _WARNING in (told := json.loads(line)):
                    _LOG.warning("%s", told[_WARNING])
                else:
                    on_progress(Progress(**told))
        finally:
            end_processes(running)
    return running.wait()


def _read(running: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert running.stdout is not None  # noqa: S101 - it is a pipe
    with running.stdout:
        for line in running.stdout:
            lines.put(line)
    lines.put(None)


def _conclude(code: int, folder: Path) -> None:
    """Say how a training ended."""
    if code == 0:
        return
    if (folder / STOP).exists():
        raise InterruptedTraining("the processes were asked to stop; what they saved last is kept")
    if (folder / REFUSED).exists():
        raise TrainingError((folder / REFUSED).read_text(encoding="utf-8"))
    said = (folder / ERRORS).read_text(errors="replace")[-_TAIL:]
    raise _BrokenProcessesError(f"the processes could not train together; the end of what they said:\n{said}")


def prepare(told: Mapping[str, Any], folder: Path) -> None:
    """Make ready a folder of another node: its data are fetched, and its text is packed once for all processes."""
    project = ProjectRef.model_validate(told["ref"]).load()
    (folder / JOB).write_text(json.dumps(dict(told)), encoding="utf-8")
    for source in project.all_sources().values():
        ensure_local(source)
    if told["kind"] == "language":
        language_training(project, _base(project), project.languages[told["language"]], folder)


def _base(project: Project) -> Base:
    return load_base(locate_base(project.base.id, data_root=project.data_root), project.base.revision)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("", 0))
        return int(opened.getsockname()[1])


def _share(told: Mapping[str, Any], folder: Path, device: str) -> dict[str, Path]:
    """Give all nodes the checkpoint and the SFTs that the first one has; give where the SFTs are on this node."""
    if told["nodes"] == 1:
        return {code: Path(source) for code, source in told["sources"].items()}
    files: dict[str, Path] = {}
    if is_first_process():
        files = {str(file.relative_to(folder)): file for file in checkpoint_files(folder)}
        for code, source in told["sources"].items():
            files |= {f"{_SOURCES}/{code}/{file.name}": file for file in Path(source).iterdir()}
    send_files(files, folder, device=torch.device(device))
    return {code: folder / _SOURCES / code for code in told["sources"]}


class _Teller(logging.Handler):
    """Tells the process of the flow what is warned of: it has the log of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        print(json.dumps({_WARNING: record.getMessage()}), flush=True)


def main(folder: Path) -> int:
    """Train as one of the processes; what torchrun runs. Gives the exit code."""
    told = json.loads((folder / JOB).read_text(encoding="utf-8"))
    project = ProjectRef.model_validate(told["ref"]).load()
    base = _base(project)

    def report(progress: Progress) -> None:
        print(json.dumps({**asdict(progress), "metrics": dict(progress.metrics)}), flush=True)

    try:
        sources = _share(told, folder, join_processes(told["more"]["device"]))
        if told["kind"] == "language":
            what = language_training(project, base, project.languages[told["language"]], folder)
        else:
            target = project.target_tasks[told["target_task"]]
            what = task_training(project, base, target, told["language"], sources)
        sft = train_sft(
            base, folder=folder, on_progress=report, should_stop=(folder / STOP).exists, **what, **told["more"]
        )
    except InterruptedTraining:
        (folder / STOP).touch()  # another node may have been asked
        return _SAVED
    except LtsftError as error:
        if is_first_process():
            (folder / REFUSED).write_text(str(error), encoding="utf-8")
        raise
    if is_first_process():
        learnt_by = method_named(sft.method).summary
        save_sft(sft, folder / SFT_FOLDER, values=what["recipe"].values, learnt_by=learnt_by)
    return 0


if __name__ == "__main__":
    from tasks.orchestration import end_with_parent
    from tasks.settings import quiet_services

    quiet_services()
    end_with_parent()
    logging.getLogger("ltsft").addHandler(_Teller(logging.WARNING))
    sys.exit(main(Path(sys.argv[1])))
