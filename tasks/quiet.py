"""What an entry point sets before anything imports torch, Prefect and MLflow; it imports nothing itself."""

from __future__ import annotations

import logging
import os

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for data
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 8 to 25 s, and more on a busy machine
    "PREFECT_LOGGING_EXTRA_LOGGERS": "ltsft,tasks,flows",  # what they log is with the flow run, too
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "OMP_WAIT_POLICY": "PASSIVE",  # a spinning thread slows everything down where cores are shared
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",  # its report of heads that are new, at each load
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "true",  # Prefect's client takes 1, true or yes; MLflow takes true alone
}


def quiet_services() -> None:
    """Turn off the telemetry of MLflow and Prefect, and what MLflow prints about its tables, runs and uploads.

    An entry point calls it before anything imports them. What the environment already sets is left as it is.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
