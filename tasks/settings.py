"""What the environment says: where MLflow is, and which secrets are used. Read once, here and nowhere else.

    LTSFT_TRACKING_URI or MLFLOW_TRACKING_URI   the MLflow server or database; SQLite in the project's store by default
    LTSFT_ARTIFACT_LOCATION                     folder or URL for the artifacts of a new MLflow experiment
    LTSFT_BUCKET                                s3://bucket/prefix for checkpoints, leases and the inbox; else none
    LTSFT_TRAININGS                             where retrain starts trainings: here (default) or as deployments
    LTSFT_QUIET_SECONDS                         how old an upload has to be before it is noticed
    LTSFT_NODES_PORT, LTSFT_FIRST_NODE          where the nodes of a training meet (tasks/training/nodes.py)
    LTSFT_GIT_COMMIT                            the commit an image was built from, where there is no checkout

MLflow reads its own credentials (``MLFLOW_TRACKING_USERNAME``, ``MLFLOW_TRACKING_PASSWORD``,
``MLFLOW_TRACKING_TOKEN``) and the S3 client its own (``AWS_*``) from the environment; they never pass through this
project.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ltsft.errors import ConfigError
from ltsft.serving import Limits
from tasks.credentials import check_credentials

_SERVE = "LTSFT_SERVE_"
_OF_KUBERNETES = re.compile(rf"{_SERVE}(SERVICE_|PORT$|PORT_)")
"""What Kubernetes puts into pods beside a service that is called ltsft-serve."""


class Settings(BaseSettings):
    """Settings of this process. An address is a secret here, because it may hold a password."""

    model_config = SettingsConfigDict(
        env_prefix="LTSFT_",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    tracking_uri: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LTSFT_TRACKING_URI", "MLFLOW_TRACKING_URI")
    )
    artifact_location: str | None = Field(default=None, description="of a new MLflow experiment; fixed from then on")
    bucket: str | None = Field(
        default=None,
        description="where checkpoints and leases are kept, so that another machine can go on; else this machine alone",
    )
    lease_seconds: float = Field(default=60.0, gt=0, description="a run that is gone for so long has lost its key")
    trainings: Literal["here", "deployments"] = Field(default="here", description="where retrain starts trainings")
    crashes: int = Field(default=3, ge=1, description="a deployed training that crashed so often has failed for good")
    retry_seconds: float = Field(default=10.0, gt=0, description="pause before a second attempt; longer each time")
    poll_seconds: float = Field(default=5.0, gt=0, description="pause between looks at deployed trainings")
    quiet_seconds: float = Field(
        default=300.0, ge=0, description="a language is noticed when its newest file is so old"
    )
    nodes_port: int = Field(default=29400, ge=1024, lt=65536, description="where the nodes of a training meet")
    first_node: str | None = Field(
        default=None, description="address of the first node, for the others; in a cluster they know its name"
    )
    git_commit: str | None = Field(default=None, description="used where the working folder is not a checkout")

    @field_validator("tracking_uri")
    @classmethod
    def _has_scheme(cls, uri: SecretStr | None) -> SecretStr | None:
        if uri is not None and "://" not in uri.get_secret_value():
            raise ValueError(
                "a tracking URI has a scheme: https://mlflow.example.org, postgresql://... or "
                "sqlite:////folder/mlflow.db; MLflow's file store (a bare folder) is out of maintenance and not used"
            )
        return uri

    def resolve_tracking_uri(self, store_folder: str | Path) -> str:
        """Give the address of MLflow: the one that is set, else SQLite in the project's store folder."""
        if self.tracking_uri is not None:
            return self.tracking_uri.get_secret_value()
        return f"sqlite:///{Path(store_folder).absolute() / 'mlflow.db'}"

    def resolve_artifact_location(self, store_folder: str | Path) -> str | None:
        """Give where a new experiment keeps its artifacts; None leaves it to the MLflow server."""
        if self.artifact_location is not None:
            return self.artifact_location
        return None if self.tracking_uri is not None else str(Path(store_folder).absolute() / "artifacts")


def read_limits(environment: Mapping[str, str] = os.environ) -> Limits:
    """Read the limits of a server: ``LTSFT_SERVE_`` and the name of a limit in capitals (`ltsft.serving.limits`).

    Raises:
        ConfigError: a value is not allowed, or a variable of this prefix is none of a server: a slip in the name of
            ``LTSFT_SERVE_API_KEYS`` would open it to everybody.
    """
    known = {f"{_SERVE}{name.upper()}": name for name in Limits.model_fields}
    allowed = {*known, f"{_SERVE}API_KEYS", f"{_SERVE}API_KEYS_FILE"}
    problems = [
        f"{name}: there is no such setting; allowed are {', '.join(sorted(allowed))}"
        for name in sorted(environment)
        if name.upper().startswith(_SERVE) and name not in allowed and not _OF_KUBERNETES.match(name)
    ]
    given = {known[name]: value for name, value in environment.items() if name in known and value}
    try:
        limits = Limits.model_validate(given)
    except ValidationError as error:
        problems += [
            f"{_SERVE}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors(include_input=False)
        ]
    if problems:
        raise ConfigError(f"the environment has a wrong setting: {'; '.join(problems)}")
    return limits


@cache
def read_settings() -> Settings:
    """Read the environment, the first time it is called.

    Raises:
        ConfigError: a variable has a value that is not allowed, or a secret is set and empty; no value is shown.
    """
    check_credentials()
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors(include_input=False))
        raise ConfigError(f"the environment has a wrong setting: {problems}") from None
