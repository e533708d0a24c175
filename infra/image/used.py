"""Import what the image runs, while it is built.

Without arguments: the packages of others, so that the byte code of what is used is in the image, and of nothing else.
With arguments: all modules of the packages that are named, so that an import that fails is met here.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

USED = [
    "accelerate",
    "boto3",
    "datasets",
    "great_expectations",
    "kubernetes_asyncio.client",
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "mlflow.server.auth",
    "mlflow.server.fastapi_app",
    "mlflow.store.artifact.s3_artifact_repo",
    "mlflow.store.tracking.sqlalchemy_store",
    "numba",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.instrumentation.fastapi",
    "pcodec",
    "peft",
    "prefect.cli",
    "prefect.flow_engine",
    "prefect.server.api.server",
    "prefect.workers.process",
    "prefect_kubernetes.worker",
    "psycopg2",
    "s3fs",
    "safetensors.torch",
    "seqeval.metrics",
    "sklearn.metrics",
    "torch._dynamo",
    "torch.distributed.run",
    "transformers.models.bert.modeling_bert",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
    "transformers.models.roberta.modeling_roberta",
    "uvicorn.supervisors",
]

for name in USED if len(sys.argv) == 1 else sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}.") if len(sys.argv) > 1 else ():
        if module.name.endswith(".__main__"):  # runs when it is imported
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if not (error.name or "").startswith("onnx"):  # an export that the image does not have
                raise
