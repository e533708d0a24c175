"""Settings come from the environment, and telemetry is off unless it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltsft.errors import ConfigError
from tasks.quiet import quiet_services
from tasks.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("LTSFT_TRACKING_URI", "MLFLOW_TRACKING_URI", "LTSFT_ARTIFACT_LOCATION", "LTSFT_GIT_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


def test_mlflow_is_sqlite_in_the_store_unless_it_is_set(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.resolve_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.resolve_artifact_location(tmp_path) == str(tmp_path / "artifacts")


def test_the_standard_variable_of_mlflow_is_read_and_ours_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://standard.example.org")
    assert Settings().resolve_tracking_uri(tmp_path) == "https://standard.example.org"
    assert Settings().resolve_artifact_location(tmp_path) is None
    monkeypatch.setenv("LTSFT_TRACKING_URI", "https://ours.example.org")
    assert Settings().resolve_tracking_uri(tmp_path) == "https://ours.example.org"


def test_a_password_in_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTSFT_TRACKING_URI", "postgresql://me:hunter2@host/db")
    assert "hunter2" not in repr(read_settings())
    read_settings.cache_clear()
    monkeypatch.setenv("LTSFT_TRACKING_URI", "mlruns-hunter2")
    with pytest.raises(ConfigError, match=r"TRACKING_URI: .*has a scheme") as caught:
        read_settings()
    assert "hunter2" not in str(caught.value)


def test_telemetry_is_off_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    monkeypatch.setattr(os, "environ", dict(os.environ))  # quiet_services writes; the process keeps its own
    quiet_services()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"
