"""MLflow's server in this process: its own Flask application on the database of a project's store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from werkzeug.serving import make_server


@contextmanager
def mlflow_serving(store: Path) -> Iterator[str]:
    """Serve ``mlflow.db`` of a store folder; gives the address. One at a time in a process."""
    import mlflow.server
    from mlflow.server import handlers
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking

    with pytest.MonkeyPatch.context() as patch:
        # A server takes its store for that of the whole process, clients and variables included.
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.setenv(name, "")
            patch.delenv(name)
        patch.setattr(tracking, "_tracking_uri", None)
        patch.setattr(registry, "_registry_uri", None)
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{store}/mlflow.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(store / "artifacts"))
        for name in ("_tracking_store", "_model_registry_store"):
            patch.setattr(handlers, name, None)  # what it opened for the last one
        server = make_server("127.0.0.1", 0, mlflow.server.app, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
