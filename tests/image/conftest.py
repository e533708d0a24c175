"""The image as somebody builds it, and the stack of Compose with it.

Whatever engine answers is used. Where none does, these tests fail: they are asked for by name, and prove nothing then.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_stack import Stack, call

ROOT = Path(__file__).parents[2]
IMAGE = "ltsft:test"
BASE = "BASE=docker.io/library/python:3.11-slim-bookworm"
STANDINS = {
    "postgres": "docker.io/library/postgres:17.6-bookworm",
    "s3": "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z",
}
"""What stands for which image, where that cannot be had."""


def answers(*command: str) -> bool:
    return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.fixture(scope="session")
def engine() -> str:
    """The program that builds and runs images."""
    for name in ("docker", "podman"):
        if answers(name, "info"):
            return name
    pytest.fail("no container engine answers: neither `docker info` nor `podman info` does. Install or start one.")


@pytest.fixture(scope="session")
def build_options() -> list[str]:
    """What the build needs on this machine, such as ``--build-arg BASE=...``."""
    return shlex.split(os.environ.get("BUILD", ""))


@pytest.fixture(scope="session")
def image(engine: str, build_options: list[str]) -> str:
    """The image of this checkout."""
    call(engine, "build", "--tag", IMAGE, "--build-arg", "TORCH=cpu", *build_options, ROOT)
    return IMAGE


@pytest.fixture(scope="session")
def overrides(engine: str, build_options: list[str]) -> list[Path]:
    """Nothing; or stand-ins for PostgreSQL and MinIO, built here, where their images cannot be had."""
    if all(answers(engine, "image", "inspect", name) or answers(engine, "pull", name) for name in STANDINS.values()):
        return []
    print("The images of PostgreSQL and MinIO cannot be had: stand-ins are built from packages.")
    for name in STANDINS:
        folder = ROOT / "tests/image/standins" / name
        call(engine, "build", "--tag", f"ltsft-test-{name}", "--build-arg", BASE, *build_options, folder)
    return [ROOT / "tests/image/standins.yaml"]


@pytest.fixture(scope="session")
def stack(engine: str, image: str, overrides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, started by the one command, with a schedule that does not take a quarter of an hour."""
    if not answers(engine, "compose", "version"):
        pytest.fail(f"`{engine} compose version` fails: install Compose 2 as a plugin of {engine}")
    folder = tmp_path_factory.mktemp("clone")
    made = Stack(engine, folder, image, overrides, LTSFT_WATCH="30s", LTSFT_QUIET_SECONDS="5")
    try:
        made("up", "--detach")
        yield made
    finally:
        (folder / "compose.log").write_text(made("logs", "--no-color", check=False))
        made("down", "--volumes", "--timeout", "5", check=False)
