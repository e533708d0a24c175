"""Pushing to the hub, against a stand-in that speaks as much of its API as a push needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_api import TOKEN, Hub, serving

from ltsft.errors import ConfigError, ServiceError, SFTFileError
from ltsft.release.hub import push_folder
from ltsft.sft.files import load_sft, save_sft


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
    with serving() as address:
        yield address


def test_an_sft_folder_arrives_whole_in_a_private_repository(
    hub: str, make_sft: Callable[..., Any], tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    folder = save_sft(make_sft(tiny_model()), tmp_path / "sft")

    address = push_folder(folder, "team/fo", endpoint=hub)

    repository = Hub.repositories["team/fo"]
    assert address.endswith("/team/fo/commit/1")
    assert repository["visibility"] == "private"
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name, content in repository["files"].items():
        (fetched / name).write_bytes(content)
    assert load_sft(fetched).support_size == load_sft(folder).support_size


def test_what_is_no_sft_or_damaged_is_not_pushed_and_a_refusal_is_told(
    hub: str,
    make_sft: Callable[..., Any],
    tiny_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_sft(make_sft(tiny_model()), tmp_path / "sft")
    with pytest.raises(ConfigError, match="a repository is OWNER/NAME"):
        push_folder(folder, "../etc", endpoint=hub)
    with pytest.raises(SFTFileError, match="neither an SFT folder nor an exported composition"):
        push_folder(tmp_path, "team/fo", endpoint=hub)
    content = bytearray((folder / "sft.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "sft.safetensors").write_bytes(content)
    with pytest.raises(SFTFileError):
        push_folder(folder, "team/fo", endpoint=hub)
    assert not Hub.repositories
    whole = save_sft(make_sft(tiny_model(), seed=3), tmp_path / "whole")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(ServiceError, match="the hub could not take team/fo"):
        push_folder(whole, "team/fo", endpoint=hub)


def test_a_hub_that_is_away_is_told(
    make_sft: Callable[..., Any], tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    folder = save_sft(make_sft(tiny_model()), tmp_path / "sft")
    with pytest.raises(ServiceError, match="the hub could not take team/fo"):
        push_folder(folder, "team/fo", endpoint="http://127.0.0.1:9")
