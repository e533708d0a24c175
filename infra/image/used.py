"""Import what the image runs, while it is built.

So the byte code of that is in the image, and of nothing else; and an import that fails is met here.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import yaml

SERVICES = [
    "mlflow.server.auth",
    "mlflow.server.fastapi_app",
    "mlflow.store.tracking.sqlalchemy_store",
    "prefect.cli",
    "prefect.flow_engine",
    "prefect.server.api.server",
    "prefect.workers.process",
    "prefect_kubernetes.worker",
    "psycopg2",
    "transformers.models.bert.modeling_bert",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
]


def used() -> list[str]:
    """Give the modules of this project, those of the deployments, and the services."""
    ours = [
        module.name
        for package in ("ltsft", "tasks", "flows")
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    ]
    deployments = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return [*ours, *(deployment["entrypoint"].partition(":")[0] for deployment in deployments), *SERVICES]


for name in used():
    try:
        importlib.import_module(name)
    except ImportError as error:
        if not (error.name or "").startswith("onnx"):  # an export that the image does not have
            raise
