"""What the tests of the manifests share: the overlays as kubectl renders them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = [f"overlays/{name}" for name in ("dev", "dev/bootstrap", "prod", "serving", "kserve")] + ["bootstrap"]


@pytest.fixture(scope="session")
def kubectl() -> str:
    """The program that renders the overlays."""
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not installed; it renders the overlays")
    return found


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of infra/k8s with passwords for the dev overlay."""
    folder = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(ROOT / "infra" / "k8s", folder, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([folder / "make-secrets.sh", folder / "overlays/dev/secrets"], check=True)
    return folder


@pytest.fixture(scope="session", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, kubectl: str, manifests: Path) -> list[dict[str, Any]]:
    """All objects of an overlay, as `kubectl kustomize` gives them."""
    done = subprocess.run([kubectl, "kustomize", manifests / request.param], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))
