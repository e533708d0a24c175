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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import Field

from ltsft.base import Base, load_base, locate_base
from ltsft.config import Frozen
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
from tasks.training.preparing import Assignment
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


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("", 0))
        return int(opened.getsockname()[1])


class JointTraining(Frozen):
    """A training by several processes, as each of them is told of it, in JSON.

    Attributes:
        ref: the project.
        assignment: the product that is trained.
        nodes: machines, the first one included; the others come by themselves (tasks/training/joining.py).
        processes: of each node.
        port: where the processes of several nodes meet.
        checkpoint_seconds: time between checkpoints.
        device: "cpu" or "cuda".
    """

    ref: ProjectRef
    assignment: Assignment
    nodes: int = 1
    processes: int
    port: int = Field(default_factory=_free_port)
    checkpoint_seconds: float
    device: str

    def place(self, node: int, first: str) -> list[str]:
        """Say to torchrun which node this is, and at which address the first one is."""
        if self.nodes == 1:
            return ["--standalone"]
        rank = [f"--nnodes={self.nodes}", f"--node-rank={node}"]
        return [*rank, f"--master-addr={first}", f"--master-port={self.port}"]


def train_together(
    joint: JointTraining, folder: Path, *, on_progress: OnProgress, should_stop: Callable[[], bool]
) -> Path:
    """Train with several processes, on this machine or several.

    Args:
        joint: what is trained, by how many.
        folder: where this node trains.
        on_progress: called after each step.
        should_stop: asked several times a second.

    Returns:
        The folder with the SFT.

    Raises:
        TrainingError: a process failed, with the end of what they said.
        InterruptedTraining: this node or another one was asked to stop, and they saved a checkpoint if they could.
        ServiceError: another node is lost.
    """
    for name in (STOP, REFUSED):
        (folder / name).unlink(missing_ok=True)
    told = joint.model_dump_json()
    (folder / JOB).write_text(told, encoding="utf-8")
    if joint.nodes == 1:
        _conclude(_run(joint, folder, on_progress, should_stop), folder)
        return folder / SFT_FOLDER
    with Meeting(joint.nodes, told) as meeting:
        try:
            meeting.gather(should_stop)
            _conclude(_run(joint, folder, on_progress, should_stop, SAVE_SECONDS), folder)
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
    return folder / SFT_FOLDER


class _BrokenProcessesError(TrainingError):
    """The processes ended, and none of them said why."""


def start_processes(
    joint: JointTraining, folder: Path, *, node: int, first: str, output: int, errors: int
) -> subprocess.Popen[str]:
    """Start the processes of a node; they share the threads that torch has here.

    Args:
        joint: what they train.
        folder: of this node, where they are told of it.
        node: number of this one, from 0.
        first: address of the first one.
        output: file descriptor for what they print.
        errors: file descriptor for what they say besides.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={joint.processes}"]
    command += [*joint.place(node, first), "-m", "tasks.training.together", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // joint.processes))}
    return subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=output, stderr=errors, text=True, start_new_session=True
    )


def end_processes(running: subprocess.Popen[str]) -> None:
    """Kill what is still running: torchrun, and the processes see that it is gone."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def _run(
    joint: JointTraining,
    folder: Path,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
    save_seconds: float = math.inf,
) -> int:
    """Run the processes of this node to their end; give their exit code."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    end: float | None = None
    with (folder / ERRORS).open("w") as errors:
        running = start_processes(
            joint, folder, node=0, first="127.0.0.1", output=subprocess.PIPE, errors=errors.fileno()
        )
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


def prepare(joint: JointTraining, folder: Path) -> None:
    """Make ready a folder of another node: its data are fetched, and its text is packed once for all processes."""
    project = joint.ref.load()
    (folder / JOB).write_text(joint.model_dump_json(), encoding="utf-8")
    for source in project.all_sources().values():
        ensure_local(source)
    if joint.assignment.kind == "language":
        joint.assignment.training(project, _base(project), folder)


def _base(project: Project) -> Base:
    return load_base(locate_base(project.base.id, data_root=project.data_root), project.base.revision)


def _share(joint: JointTraining, folder: Path, device: str) -> Assignment:
    """Give all nodes the checkpoint and the SFTs that the first one has; say where the SFTs are on this node."""
    assignment = joint.assignment
    if joint.nodes == 1:
        return assignment
    files: dict[str, Path] = {}
    if is_first_process():
        files = {str(file.relative_to(folder)): file for file in checkpoint_files(folder)}
        for code, source in assignment.sources.items():
            files |= {f"{_SOURCES}/{code}/{file.name}": file for file in source.iterdir()}
    send_files(files, folder, device=torch.device(device))
    return assignment.model_copy(update={"sources": {code: folder / _SOURCES / code for code in assignment.sources}})


class _Teller(logging.Handler):
    """Tells the process of the flow what is warned of: it has the log of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_first_process():
            print(json.dumps({_WARNING: record.getMessage()}), flush=True)


def main(folder: Path) -> int:
    """Train as one of the processes; what torchrun runs. Gives the exit code."""
    joint = JointTraining.model_validate_json((folder / JOB).read_bytes())
    project = joint.ref.load()
    base = _base(project)

    def report(progress: Progress) -> None:
        print(json.dumps({**asdict(progress), "metrics": dict(progress.metrics)}), flush=True)

    try:
        training = _share(joint, folder, join_processes(joint.device)).training(project, base, folder)
        sft = train_sft(
            base,
            training,
            folder=folder,
            checkpoint_seconds=joint.checkpoint_seconds,
            device=joint.device,
            on_progress=report,
            should_stop=(folder / STOP).exists,
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
        save_sft(sft, folder / SFT_FOLDER, values=training.recipe.values, learnt_by=learnt_by)
    return 0


if __name__ == "__main__":
    from tasks.orchestration import end_with_parent
    from tasks.quiet import quiet_services

    quiet_services()
    end_with_parent()
    logging.getLogger("ltsft").addHandler(_Teller(logging.WARNING))
    sys.exit(main(Path(sys.argv[1])))
