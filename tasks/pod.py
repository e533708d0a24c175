"""What a pod of the GPU pool starts as: ``python -m tasks.pod COMMAND``. It imports next to nothing.

The pods of a job are the nodes of one training (tasks/training/nodes.py). The one of index 0 becomes the command, which
is the flow run; the others become ``python -m tasks.training.joining``.
"""

from __future__ import annotations

import os
import sys

INDEX = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an Indexed job."""
FIRST_PROCESS = "LTSFT_FIRST_PROCESS"
"""Set here: the process that Kubernetes asks to stop."""


def main() -> None:
    """Become what the index says."""
    index = int(os.environ.get(INDEX, "0"))
    if index == 0:
        os.environ[FIRST_PROCESS] = str(os.getpid())
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - the command of the job template
    os.execv(sys.executable, [sys.executable, "-m", "tasks.training.joining", str(index)])  # noqa: S606


if __name__ == "__main__":
    main()
