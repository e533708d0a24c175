"""Real servers as processes of this machine: PostgreSQL, and those of Prefect and MLflow as manifests start them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 240.0) -> Any:
    """Wait until a condition gives something, and give that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
    return found


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return httpx.get(url, timeout=5, verify=url.startswith("https")).is_success  # reading certificates takes 30 ms
    except httpx.HTTPError:
        return False


class Process:
    """A server that can be killed and started again."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path, **more: Any) -> None:
        self.command, self.environment, self.log, self.more = command, environment, log, more
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=ROOT,
                **self.more,
            )

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def wait_for(self, url: str, seconds: float = 420.0) -> None:
        """Wait until it answers at an address."""

        def is_there() -> bool:
            assert self.process.poll() is None, f"it ended: {self.log.read_text()[-3000:]}"
            return answers(url)

        wait_until(is_there, f"{url} (its log is {self.log})", seconds)


def plain_environment(folder: Path, **more: str) -> dict[str, str]:
    """Give an environment with nothing of this process' own services in it."""
    kept = ("LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
    modules = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(modules),
        "HOME": str(folder),
        "DO_NOT_TRACK": "true",  # as in the image
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def started_as_in(manifest: Path, name: str) -> tuple[list[str], dict[str, str]]:
    """Give command and environment of a container, from a manifest of Kubernetes or a Compose file.

    Of the environment only what is written there: values of secrets come from elsewhere.
    """
    for thing in yaml.safe_load_all(manifest.read_text()):
        if "services" in thing:
            service = thing["services"][name]
            literal = {n: v for n, v in service["environment"].items() if "$" not in str(v)}
            return list(service["command"]), literal
        if thing["kind"] == "Deployment" and thing["metadata"]["name"] == name:
            [container] = thing["spec"]["template"]["spec"]["containers"]
            return list(container["args"]), {e["name"]: e["value"] for e in container["env"] if "value" in e}
    raise LookupError(f"{manifest} has no {name}")


def without(command: list[str], *options: str) -> list[str]:
    """Leave options out of a command, each with its value."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word in options:
            next(words)
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return kept


def postgres_programs() -> Path | None:
    """Give the folder of PostgreSQL's programs: on the path, or where Debian has them."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@contextlib.contextmanager
def postgres(*databases: str) -> Iterator[str]:
    """Run PostgreSQL with these databases; gives ``user@host:port``. It refuses to run as root."""
    programs = postgres_programs()
    assert programs is not None
    more: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="ltsft-postgres-"))  # not under pytest's, which only its owner may enter
    if os.geteuid() == 0:
        users = {user.pw_name for user in pwd.getpwall()}
        more["user"] = "postgres" if "postgres" in users else "nobody"
        shutil.chown(folder, more["user"])
    data, port = folder / "data", free_port()
    options = ["-D", str(data), "-U", "ltsft", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
    subprocess.run([programs / "initdb", *options], check=True, cwd="/", capture_output=True, **more)
    settings = ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=200"]
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", ""]
    server = Process([*command, *(w for s in settings for w in ("-c", s))], dict(os.environ), folder / "log", **more)
    try:
        arguments = ["-h", "127.0.0.1", "-p", str(port), "-U", "ltsft"]
        ready = [str(programs / "pg_isready"), *arguments, "-d", "postgres"]
        wait_until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, "PostgreSQL", 60)
        for database in databases:
            subprocess.run([programs / "createdb", *arguments, database], check=True, capture_output=True)
        yield f"ltsft@127.0.0.1:{port}"
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
