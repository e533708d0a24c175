"""One training by several processes, each with a GPU of its own: torchrun starts them inside the pod.

The process of the flow stays what talks to MLflow, Prefect and S3. It writes a job into the working folder, starts
``python -m torch.distributed.run`` on this very module, and reads the progress that the first of them prints. Asked to
stop, it leaves a file that they look for after each step: they save a checkpoint together and end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltsft.config import ProjectRef
from ltsft.errors import InterruptedTraining, TrainingError
from ltsft.train import OnProgress, Progress

JOB, STOP, ERRORS = "job.json", "stop", "processes.log"
_SAVED = 75
"""Exit code of processes that were asked to stop and saved a checkpoint."""
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


def train_together(
    job: Job, folder: Path, processes: int, *, on_progress: OnProgress, should_stop: Callable[[], bool]
) -> None:
    """Train with several processes on this machine; the SFT is in the folder then.

    Raises:
        TrainingError: a process failed, with the end of what they said.
        InterruptedTraining: `should_stop` said so, and they saved a checkpoint.
    """
    (folder / STOP).unlink(missing_ok=True)
    told = {**asdict(job), "ref": job.ref.model_dump(mode="json")}
    (folder / JOB).write_text(json.dumps(told), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tasks.together", str(folder)]
    with (
        (folder / ERRORS).open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as running,  # noqa: S603
    ):
        try:
            assert running.stdout is not None  # noqa: S101 - it is a pipe
            for line in running.stdout:
                if line.startswith("{"):
                    on_progress(Progress(**json.loads(line)))
                if should_stop():
                    (folder / STOP).touch()
        except BaseException:
            os.killpg(running.pid, signal.SIGKILL)
            raise
    if running.returncode == 0:
        return
    if (folder / STOP).exists():
        raise InterruptedTraining(f"{processes} processes were asked to stop and saved a checkpoint")
    said = (folder / ERRORS).read_text(errors="replace")[-_TAIL:]
    raise TrainingError(f"{processes} processes could not train together; the end of what they said:\n{said}")


def main(folder: Path) -> int:
    """Train as one of the processes; what torchrun runs. Gives the exit code."""
    from ltsft.base import load_base, locate_base
    from ltsft.files import save_sft
    from ltsft.processes import is_first_process
    from ltsft.train import train_sft
    from tasks.training import language_training, task_training
    from tasks.workspace import SFT_FOLDER

    told = json.loads((folder / JOB).read_text(encoding="utf-8"))
    project = ProjectRef.model_validate(told["ref"]).load()
    base = load_base(locate_base(project.base.id, data_root=project.data_root), project.base.revision)
    if told["kind"] == "language":
        what = language_training(project, base, project.languages[told["language"]], folder)
    else:
        target = project.target_tasks[told["target_task"]]
        sources = {code: Path(source) for code, source in told["sources"].items()}
        what = task_training(project, base, target, told["language"], sources)

    def report(progress: Progress) -> None:
        print(json.dumps({**asdict(progress), "metrics": dict(progress.metrics)}), flush=True)

    try:
        sft = train_sft(
            base, folder=folder, on_progress=report, should_stop=(folder / STOP).exists, **what, **told["more"]
        )
    except InterruptedTraining:
        return _SAVED
    if is_first_process():
        save_sft(sft, folder / SFT_FOLDER, values=what["recipe"].values)
    return 0


if __name__ == "__main__":
    from tasks.settings import quiet_services

    quiet_services()
    sys.exit(main(Path(sys.argv[1])))
