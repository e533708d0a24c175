"""Pushing to the hub, against a stand-in that speaks as much of its API as a push needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ltsft.errors import ConfigError, ServiceError, SFTFileError
from ltsft.files import load_sft, save_sft
from ltsft.hub import push_folder


class Hub(BaseHTTPRequestHandler):
    """Creates repositories and takes commits of small files; refuses whom it does not know."""

    repositories: dict[str, dict[str, Any]]
    token = "hf_known"

    def do_GET(self) -> None:
        self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("authorization") != f"Bearer {self.token}":
            self._answer(401, {"error": "Invalid token"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {"visibility": asked.get("visibility"), "files": {}})
            self._answer(200, {"url": f"https://huggingface.co/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self._answer(200, {"files": told})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[name]["files"][line["value"]["path"]] = content
            self._answer(
                200, {"commitUrl": f"https://huggingface.co/{name}/commit/1", "commitOid": "1", "hookOutput": ""}
            )
        else:
            self._answer(200, {})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Hub.repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


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
