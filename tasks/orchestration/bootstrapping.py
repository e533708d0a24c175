"""Making the services ready for a project: work pools, deployments, automations, MLflow, the bucket.

Everything is compared with what is there; what is as it should be is not touched, so doing it twice changes nothing.
Pools and the automation of zombies are shared by all projects of an installation; deployments, their schedules and
triggers, the experiment and the bucket's folder are the project's own. What stands in Prefect besides, under other
names, is left alone; a deployment, schedule or automation that somebody switched off stays off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from ltsft.errors import ConfigError, ServiceError
from ltsft.project import Project, ProjectRef
from tasks.orchestration.automations import HEARTBEAT_SECONDS, ZOMBIE_SECONDS, ensure_automation, zombie_automation
from tasks.orchestration.changes import Change, Doing
from tasks.orchestration.deploying import deploy, read_wanted
from tasks.settings import Settings, read_settings
from tasks.storage import Bucket
from tasks.tracking import Tracker

EXPIRE_DAYS = {"leases": 30, "checkpoints": 30}
INBOX_README = "inbox/README.md"


@dataclass(frozen=True)
class PoolSettings:
    """What of the pools is otherwise than in ``infra/work-pools``.

    Attributes:
        job_variables: new defaults of variables of the pools, such as ``image``, or of one: ``ltsft-gpu.image``.
        limits: by pool, how many of its runs may run at once.
        type: "kubernetes"; or "process", where a worker runs flows in its own container.
    """

    job_variables: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    type: str = "kubernetes"


@dataclass(frozen=True)
class RunSettings:
    """What of the deployments is otherwise than in ``prefect.yaml``.

    Attributes:
        app_folder: where flows find the code; ``/app`` in our image.
        file: where flows find the project file. Without it: a file under the root, where it is in the image, which has
            the same tree in ``app_folder``; another one, where it is here.
        schedules: by deployment, another schedule; see `tasks.orchestration.deploying.parse_schedule`.
        zombie_seconds: a run that is silent for so long has crashed.
    """

    app_folder: str = "/app"
    file: str | None = None
    schedules: Mapping[str, str] = field(default_factory=dict)
    zombie_seconds: float = ZOMBIE_SECONDS


def bootstrap(
    file: Path,
    *,
    root: Path,
    pools: PoolSettings = PoolSettings(),
    runs: RunSettings = RunSettings(),
    dry_run: bool = False,
) -> list[Change]:
    """Create or update everything that a project needs in Prefect, MLflow and S3.

    Args:
        file: the project file. Data and base need not be here.
        root: folder with ``prefect.yaml`` and ``infra/work-pools``.
        pools: what of the pools is otherwise.
        runs: what of the deployments is otherwise.
        dry_run: only say what would change.

    Returns:
        What changed or would change, in order.

    Raises:
        ConfigError: a file is missing or wrong.
        ServiceError: a service cannot be reached or refuses.
    """
    settings = read_settings()
    project = ProjectRef(file=str(file)).load(check_files=False)
    wanted = read_wanted(
        _read_yaml(root / "prefect.yaml")["deployments"],
        project.name,
        project_file=runs.file or _where_runs_find(file, root),
        app_folder=runs.app_folder,
        schedules=runs.schedules,
    )
    doing = Doing(dry_run)
    try:
        with get_client(sync_client=True) as client:
            for file in sorted(root.glob("infra/work-pools/*.json")):
                template = _template(file, pools.type, pools.job_variables)
                _pool(client, doing, file.stem, pools.type, template, pools.limits.get(file.stem))
            deploy(client, doing, project.name, wanted)
            ensure_automation(client, doing, zombie_automation(runs.zombie_seconds))
    except httpx.HTTPError as error:
        shown = error.response.text[:500] if isinstance(error, httpx.HTTPStatusError) else str(error)
        raise ServiceError(
            f"Prefect refused or cannot be reached: {type(error).__name__}: {shown}; check PREFECT_API_URL"
        ) from error
    _experiment(doing, project, settings)
    if settings.bucket is not None:
        _bucket(doing, project, settings.bucket)
    return doing.changes


def _where_runs_find(file: Path, root: Path) -> str:
    """Give the path of a project file as flows see it, which run in the app folder.

    Raises:
        ConfigError: the file is neither under the root nor given by its full path.
    """
    if file.resolve().is_relative_to(root.resolve()):
        return str(file.resolve().relative_to(root.resolve()))
    if file.is_absolute():
        return str(file)
    raise ConfigError(
        f"{file} is not under {root.resolve()}, which the image has, too; say with --run-file where flows find it"
    )


def _template(file: Path, pool_type: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give a pool's job template, with other defaults where they are given for it or for all pools."""
    if pool_type == "process":
        processes = ProcessWorker.get_default_base_job_template()
        # Silence says that a process is dead: so all of them have to give signs of life.
        processes["variables"]["properties"]["env"]["default"] = {
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)
        }
        return processes
    if pool_type != "kubernetes":
        raise ConfigError(f"a pool is of type kubernetes or process, got {pool_type!r}")
    template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    properties = template["variables"]["properties"]
    for name, value in defaults.items():
        pool, _, variable = name.rpartition(".")
        if pool not in ("", file.stem):
            continue
        if variable in properties:
            properties[variable]["default"] = value
        elif pool:
            raise ConfigError(f"{file} has no variable {variable!r}; allowed are {', '.join(properties)}")
    return template


def _pool(
    client: SyncPrefectClient, doing: Doing, name: str, pool_type: str, template: dict[str, Any], limit: int | None
) -> None:
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        pool = WorkPoolCreate(name=name, type=pool_type, base_job_template=template, concurrency_limit=limit)
        doing(Change("create", f"work pool {name}"), lambda: client.create_work_pool(pool))
        return
    differing = [] if there.base_job_template == template else ["job template"]
    if there.type != pool_type:
        raise ConfigError(f"work pool {name} is of type {there.type}, not {pool_type}; delete it in Prefect first")
    if limit is not None and there.concurrency_limit != limit:
        differing.append(f"concurrency limit {there.concurrency_limit} -> {limit}")
    if differing:
        update = WorkPoolUpdate(base_job_template=template, concurrency_limit=limit or there.concurrency_limit)
        doing(Change("update", f"work pool {name}", tuple(differing)), lambda: client.update_work_pool(name, update))


def _experiment(doing: Doing, project: Project, settings: Settings) -> None:
    if not Tracker.exists(project.name, project.store.folder, settings=settings):
        location = settings.resolve_artifact_location(project.store.folder) or "where the server keeps them"
        doing(
            Change("create", f"MLflow experiment {project.name}", (f"artifacts: {location}",)),
            lambda: Tracker.of_project(project.name, project.store.folder, settings=settings),
        )


def _bucket(doing: Doing, project: Project, location: str) -> None:
    bucket = Bucket(location) / project.name
    if not bucket.exists():
        doing(Change("create", f"bucket {bucket.bucket}"), lambda: bucket.create(expire_days=EXPIRE_DAYS))
        doing(Change("create", f"inbox {bucket.location}/inbox"), lambda: bucket.put(INBOX_README, _README.encode()))
        return
    if bucket.missing_rules(EXPIRE_DAYS) is not None:
        doing(
            Change("update", f"lifecycle of bucket {bucket.bucket}", tuple(EXPIRE_DAYS)),
            lambda: bucket.create(expire_days=EXPIRE_DAYS),
        )
    stored = bucket.get(INBOX_README)
    if stored is None or stored.data != _README.encode():
        doing(Change("create", f"inbox {bucket.location}/inbox"), lambda: bucket.put(INBOX_README, _README.encode()))


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {file}; give the folder that holds prefect.yaml and infra/ with --root"
        ) from error


_README = """\
Text of new languages. One folder a language, named by its code:

    <code>/anything.txt or .txt.gz          raw text, one sentence or paragraph a line, UTF-8
    <code>/<target task>.test.conllu[.gz]   test data, if there are any: without them the language has no cell
    <code>/language.json                    {"name": "Faroese", "script": "Latn"}, if wanted

A language is noticed when its newest file has not changed for some minutes.
"""
