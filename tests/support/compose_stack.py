"""The stack of Compose as a fresh clone starts it, with ports and passwords of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def call(*command: str | Path, seconds: float = 3600, check: bool = True, **more: Any) -> str:
    """Run a command and give what it printed; a failure shows the end of all that it said."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, **more
    )
    assert not check or done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout[-4000:]}"
    return str(done.stdout)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 1800.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(2)
    return found


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class Stack:
    """Compose, of a copy of infra/, with the image and settings that are given."""

    def __init__(self, engine: str, folder: Path, image: str, overrides: list[Path], **settings: str) -> None:
        shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("secrets"))
        self.secrets = folder / "infra/secrets"
        call(folder / "infra/k8s/make-secrets.sh", self.secrets)
        self.ports = {name: free_port() for name in ("PREFECT", "MLFLOW", "S3")}
        self.environment = os.environ | {f"LTSFT_{name}_PORT": str(port) for name, port in self.ports.items()}
        self.environment |= {"LTSFT_IMAGE": image, **settings}
        files = [folder / "infra/compose.yaml", *overrides]
        self.command = [engine, "compose", "--project-name", f"ltsft-test-{os.getpid()}"]
        self.command += [word for file in files for word in ("--file", str(file))]
        self.command += ["--env-file", str(self.secrets / "compose.env")]

    def __call__(self, *arguments: str, **more: Any) -> str:
        return call(*self.command, *arguments, env=self.environment, **more)

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"
