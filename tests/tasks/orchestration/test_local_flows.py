"""Trouble with Prefect is told as what it is: which address, who set it, and which folder cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from ltsft.errors import ConfigError, ServiceError
from tasks.orchestration.local_flows import run_locally


def unreachable(**_: object) -> None:
    raise RuntimeError("Failed to reach API")


def test_an_address_that_a_profile_sets_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with (
        temporary_settings({PREFECT_API_URL: "http://me:hunter2@127.0.0.1:9/api"}),
        pytest.raises(
            ServiceError, match=r"check PREFECT_API_URL \(http://\*\*\*@127.0.0.1:9/api, which `prefect"
        ) as told,
    ):
        run_locally(unreachable)
    assert "hunter2" not in str(told.value)
    assert "not set" not in str(told.value)


def test_a_folder_that_prefect_cannot_use_is_told_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    called: list[object] = []
    with (
        temporary_settings({PREFECT_HOME: tmp_path / "file" / "home"}),
        pytest.raises(
            ConfigError, match="file/home cannot be written: Not a directory; set PREFECT_HOME to one that can"
        ),
    ):
        run_locally(lambda **_: called.append(1))
    assert not called
