"""Serving the releases of a project: the registry as their source, a bundle in the store as their copy."""

from __future__ import annotations

import logging
from pathlib import Path

from ltsft.base import load_base, locate_base
from ltsft.errors import ServiceError
from ltsft.project import ProjectRef
from ltsft.release import ComposedPart, Release, Slot, UnreadableRelease
from ltsft.serving import ApiKeys, Bundle, Engine, Metrics, Service, add_traces, create_app, serve_app
from tasks.credentials import check_credentials, read_api_keys
from tasks.releases.registry import Registry
from tasks.settings import read_limits
from tasks.workspace import open_workspace

BUNDLE_FOLDER = "serving"


class RegistrySource:
    """The registry of a project, opened when it can be reached.

    Args:
        ref: the project file.
    """

    def __init__(self, ref: ProjectRef) -> None:
        self._ref = ref
        self._registry: Registry | None = None

    def live(self) -> dict[Slot, Release | UnreadableRelease]:
        """Give what is released now."""
        return self._opened().live()

    def fetch(self, part: ComposedPart) -> Path:
        """Give the folder of an SFT."""
        return self._opened().fetch(part)

    def _opened(self) -> Registry:
        if self._registry is None:
            workspace = open_workspace(self._ref, needs_data=False)
            self._registry = Registry(workspace.tracker, workspace.project.name)
        return self._registry


def run_service(ref: ProjectRef, *, host: str, port: int, bundle: Path | None = None) -> None:
    """Answer requests until a signal comes.

    Args:
        ref: the project file.
        host: address to listen on.
        port: to listen on.
        bundle: a release bundle to start from when the registry is away; the server's own copy without it.

    Raises:
        ConfigError: the project file or a setting is wrong.
        ServiceError: the registry is away, and there is no bundle.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    check_credentials()
    limits, keys = read_limits(), ApiKeys(read_api_keys())
    project = ref.load(check_files=False)
    kept = Bundle(bundle or project.store.folder.absolute() / BUNDLE_FOLDER)
    metrics = Metrics()
    base = load_base(locate_base(project.base.id, data_root=project.data_root), project.base.revision)
    engine = Engine(base, limits=limits, on_switch=metrics.switch, is_compiled=True)
    service = Service(engine, RegistrySource(ref), limits=limits, metrics=metrics, bundle=kept)
    try:
        service.start()
    except ServiceError as error:
        raise ServiceError(f"{error}; and there is no release bundle in {kept.folder} to start from") from error
    app = create_app(service, keys=keys, title=f"ltsft: {project.name}")
    add_traces(app)
    serve_app(app, service, host=host, port=port)
