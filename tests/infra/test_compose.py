"""What Compose starts can start: volumes and secrets that the user of each container can use, and places to write."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Service = dict[str, Any]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
SERVICES: dict[str, Service] = COMPOSE["services"]
OWNED = {
    "postgres": {"/var/lib/postgresql/data"},
    "minio": {"/data"},  # its user is root
    "ltsft": {"/app/work", "/cache"},
}
"""By image, the folders that belong to its user. A named volume anywhere else belongs to root."""
FOLDERS = ("HOME", "PREFECT_HOME", "PREFECT_UI_STATIC_DIRECTORY", "HF_HOME")
"""Variables that name a folder to write to."""


def name_of_image(service: Service) -> str:
    if "LTSFT_IMAGE" in service["image"]:
        return "ltsft"
    return str(service["image"]).rpartition("/")[2].partition(":")[0]


def mounts(service: Service) -> dict[str, str]:
    """Named volumes by the folder where they are."""
    found = (volume.split(":") for volume in service.get("volumes", ()))
    return {parts[1]: parts[0] for parts in found if parts[0] in COMPOSE["volumes"]}


@pytest.mark.parametrize("name", SERVICES)
def test_a_named_volume_lies_where_its_image_gives_the_folder_to_its_user(name: str) -> None:
    service = SERVICES[name]
    assert set(mounts(service)) <= OWNED[name_of_image(service)]


def test_the_folders_of_our_image_belong_to_its_user() -> None:
    text = (ROOT / "Dockerfile").read_text()
    owned = re.search(r"chown 10001:10001 (.*)", text)
    assert owned is not None
    assert set(owned[1].split()) == OWNED["ltsft"]
    assert "USER 10001:10001" in text


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_writes_lies_where_it_may_write(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    places = [*mounts(service), *(entry.partition(":")[0] for entry in service["tmpfs"])]
    environment = service["environment"]
    folders = {variable: environment[variable] for variable in FOLDERS if variable in environment}
    for variable, folder in folders.items():
        assert any(Path(folder).is_relative_to(place) for place in places), f"{variable}={folder}"
    if name_of_image(service) == "ltsft":
        assert "HOME" in folders
    if "prefect server start" in " ".join(service.get("command", ())):
        assert "PREFECT_UI_STATIC_DIRECTORY" in folders, "the server writes its pages when it starts"
        assert any(Path(folders["PREFECT_HOME"]).is_relative_to(place) for place in mounts(service)), "it has leases"


def test_a_file_that_a_container_reads_is_readable_for_its_user_and_for_nobody_on_this_machine(tmp_path: Path) -> None:
    made = tmp_path / "infra/secrets"
    subprocess.run([ROOT / "infra/k8s/make-secrets.sh", made], check=True)
    mounted = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert mounted == {"basic_auth.ini"}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    for file in made.iterdir():
        mode = stat.S_IMODE(file.stat().st_mode)
        assert mode == (0o644 if file.name in mounted else 0o600), file.name
    for service in SERVICES.values():
        for secret in service.get("secrets", ()):
            assert "mode" not in secret, "Compose ignores it"


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed; it reads infra/compose.yaml")
    secrets = tmp_path / "secrets"
    subprocess.run([ROOT / "infra/k8s/make-secrets.sh", secrets], check=True)
    options = ["--file", ROOT / "infra/compose.yaml", "--env-file", secrets / "compose.env"]
    done = subprocess.run([docker, "compose", *options, "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
