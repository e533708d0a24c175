"""A stand-in for the Hugging Face hub: repositories, commits of small files and, by LFS, of large ones; downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_known"
COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Refuses whom it does not know; files of tensors go by LFS, as the real one asks for."""

    repositories: dict[str, dict[str, Any]]
    objects: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        files = self.repositories.get(name, {}).get("files")
        if files is None:
            self._answer(404, {"error": "not found"})
        elif "tree" in parts:
            self._answer(200, [{"type": "file", "path": f, "size": len(c), "oid": COMMIT} for f, c in files.items()])
        elif parts[0] == "api":
            self._answer(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
        else:
            self._give(files["/".join(parts[4:])])

    def _give(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid token"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {"visibility": asked.get("visibility"), "files": {}})
            self._answer(200, {"url": f"https://huggingface.co/{name}", "name": name})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            told = [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in modes.items()]
            self._answer(200, {"files": told})
        elif self.path.endswith("/info/lfs/objects/batch"):
            href = "http://{}:{}/object".format(*self.server.server_address[:2])
            asked_for = json.loads(body)["objects"]
            told = [{**one, "actions": {"upload": {"href": href, "header": {}}}} for one in asked_for]
            self._answer(200, {"transfer": "basic", "objects": told})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.repositories[name]["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.repositories[name]["files"][value["path"]] = self.objects[value["oid"]]
            told = {"commitUrl": f"https://huggingface.co/{name}/commit/1", "commitOid": "1", "hookOutput": ""}
            self._answer(200, told)
        else:
            self._answer(200, {})

    def _answer(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    """Run the stand-in with nothing in it; gives its address."""
    Hub.repositories, Hub.objects = {}, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
