"""A stand-in for a Kubernetes cluster: its API over HTTP, and a node that runs containers of jobs as local processes.

It speaks as much of the real API as prefect-kubernetes' worker and its observer (kopf) and our reconciler need: jobs,
pods with logs, events and secrets; create, read, list with label and field selectors, watch with resource versions and
bookmarks, delete with grace. What becomes of a job is in kubernetes_jobs.py.

    with Cluster(folder, environment) as cluster:
        cluster.url
        cluster.evict(pod), cluster.vanish(pod), cluster.kill(pod), cluster.kill_out_of_memory(pod)
        cluster.keep_pending = lambda pod: "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        cluster.drop_watches(), cluster.forget()
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web
from kubernetes_jobs import Node, kill_all
from kubernetes_objects import KINDS, Thing, condition, matches, uid_of

_LIST_PATHS = {"jobs": "/apis/batch/v1", "pods": "/api/v1", "events": "/api/v1", "secrets": "/api/v1"}


class Cluster(Node):
    """The cluster; a context manager."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, cwd: Path) -> None:
        super().__init__(folder, environment, cwd=cwd)
        self._watches: set[asyncio.Task[Any]] = set()
        self._ready = threading.Event()
        self.port = 0

    # --- for tests -------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kubeconfig(self) -> Path:
        """A kubeconfig that leads here."""
        file = self.folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "standin",
            "contexts": [{"name": "standin", "context": {"cluster": "standin", "user": "standin"}}],
            "clusters": [{"name": "standin", "cluster": {"server": self.url}}],
            "users": [{"name": "standin", "user": {"token": "standin"}}],
        }
        file.write_text(json.dumps(config))
        return file

    def objects(self, plural: str) -> list[Thing]:
        """Copies of all objects of a kind, oldest first."""
        return self._call(lambda: [copy.deepcopy(thing) for thing in self._store.by_kind[plural].values()])

    def running(self, flow: str = "") -> list[Thing]:
        """Pods whose process runs, of one flow (by the label that the worker sets) or of all."""
        return [
            pod
            for pod in self.objects("pods")
            if pod["status"]["phase"] == "Running" and flow in pod["metadata"]["labels"].get("prefect.io/flow-name", "")
        ]

    def log(self, pod: Thing) -> str:
        file = self._log_file(pod)
        return file.read_text(errors="replace") if file.is_file() else ""

    def evict(self, pod: Thing) -> None:
        """Ask a pod to go: SIGTERM to its first process, SIGKILL to all after the grace period."""
        why = condition("DisruptionTarget", "EvictionByEvictionAPI", "Eviction API: evicting")
        self._call(lambda: self._terminate(uid_of(pod), {"conditions": [why]}))

    def vanish(self, pod: Thing) -> None:
        """Lose the node: everything is gone at once, and the garbage collector says so."""
        why = condition("DisruptionTarget", "DeletionByPodGC", "PodGC: node no longer exists")
        self._call(lambda: self._kill(uid_of(pod), {"conditions": [why]}))

    def kill(self, pod: Thing) -> None:
        """SIGKILL to all processes of a pod."""
        self._call(lambda: self._kill(uid_of(pod), {}))

    def kill_out_of_memory(self, pod: Thing) -> None:
        self._call(lambda: self._kill(uid_of(pod), {"reason": "OOMKilled"}))

    def drop_watches(self) -> None:
        """Cut all watches; clients come back with the version that they saw last."""
        self._call(lambda: [watch.cancel() for watch in self._watches])

    def forget(self) -> None:
        """Forget the history: a watch from an older version is answered with 410 Gone."""

        def forget() -> None:
            self._store.oldest = self._store.version
            self._store.history.clear()

        self._call(forget)

    def add_secret(self, name: str, namespace: str, values: Mapping[str, str]) -> None:
        self._call(
            lambda: self._store.add("secrets", namespace, {"metadata": {"name": name}, "stringData": dict(values)})
        )

    def delete_job(self, name: str) -> None:
        self._call(lambda: self._spawn(self._delete_job(("", name), 1)))

    # --- the machine -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        self._thread = threading.Thread(target=self._run, name="standin cluster", daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        def stop() -> None:
            for uid in list(self._processes):
                kill_all(uid)
            for task in (*self._watches, *self._tasks):
                task.cancel()

        self._call(stop)
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()

    def _call(self, action: Callable[[], Any]) -> Any:
        """Do something in the thread of the cluster."""

        async def act() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(30)

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if path in _DISCOVERY:
            return web.json_response(_DISCOVERY[path])
        match = re.fullmatch(
            r"(/api/v1|/apis/batch/v1)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>\w+))?",
            path,
        )
        if match is None or match["plural"] not in KINDS or _LIST_PATHS[match["plural"]] != match[1]:
            return _failure(404, f"the server could not find the requested resource {path}")
        namespace, plural, name = match["ns"], match["plural"], match["name"]
        if request.method == "POST":
            return await self._create(request, plural, namespace or "default")
        if name is None:
            if request.query.get("watch") in ("true", "1"):
                return await self._watch(request, plural, namespace)
            return self._list(request, plural, namespace)
        found = self._store.by_kind[plural].get((namespace or "default", name))
        if found is None:
            return _failure(404, f'{plural} "{name}" not found')
        if match["sub"] == "log":
            lines = self.log(found).splitlines(keepends=True)
            tail = int(request.query.get("tailLines", len(lines)))
            if request.query.get("previous") in ("true", "True"):
                return _failure(400, "previous terminated container not found")
            return web.Response(text="".join(lines[-tail:] if tail else []))
        if request.method == "DELETE":
            return await self._delete(request, plural, found)
        return web.json_response(found)

    async def _create(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        body = await request.json()
        metadata = body.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = f"{metadata.get('generateName', 'x-')}{secrets.token_hex(3)}"
        if (namespace, metadata["name"]) in self._store.by_kind[plural]:
            return _failure(409, f'{plural} "{metadata["name"]}" already exists')
        made = self._store.add(plural, namespace, body)
        if plural == "jobs":
            self._start_job(made)
        return web.json_response(made, status=201)

    def _list(self, request: web.Request, plural: str, namespace: str | None) -> web.Response:
        items = [thing for thing in self._store.by_kind[plural].values() if matches(thing, request.query, namespace)]
        kind, version = KINDS[plural]
        metadata = {"resourceVersion": str(self._store.version), "continue": ""}
        return web.json_response({"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, plural: str, namespace: str | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        since = int(request.query.get("resourceVersion") or self._store.version)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)

        async def send(type_: str, thing: Thing) -> None:
            await response.write(json.dumps({"type": type_, "object": thing}).encode() + b"\n")

        try:
            if since < self._store.oldest:
                await send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
                return response
            told_at = time.monotonic()
            while True:
                news = [row for row in self._store.history if row[0] > since]
                since = max(since, self._store.version)
                for _, of, type_, thing in news:
                    if of == plural and matches(thing, request.query, namespace):
                        await send(type_, thing)
                        told_at = time.monotonic()
                if time.monotonic() - told_at > 5:
                    await send("BOOKMARK", {"metadata": {"resourceVersion": str(since)}, "kind": KINDS[plural][0]})
                    told_at = time.monotonic()
                if self._store.version == since:
                    await asyncio.sleep(0.1)
        except (asyncio.CancelledError, ConnectionError):
            request.transport.close() if request.transport else None  # cut, not ended
            return response
        finally:
            self._watches.discard(task)

    async def _delete(self, request: web.Request, plural: str, found: Thing) -> web.Response:
        options = await request.json() if request.can_read_body else {}
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        seconds = None if grace is None else int(grace)
        where = (found["metadata"]["namespace"], found["metadata"]["name"])
        if plural == "jobs":
            self._spawn(self._delete_job(where, seconds))
        elif plural == "pods":
            self._terminate(uid_of(found), {}, seconds)
        else:
            self._store.remove(plural, where)
        return web.json_response(found)


def _failure(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code)


def _resource(name: str, kind: str) -> Thing:
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    return {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}


_DISCOVERY: dict[str, Thing] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [
            {
                "name": "batch",
                "versions": [{"groupVersion": "batch/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "batch/v1", "version": "v1"},
            }
        ],
    },
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            _resource("pods", "Pod"),
            _resource("events", "Event"),
            _resource("secrets", "Secret"),
            {**_resource("namespaces", "Namespace"), "namespaced": False},
        ],
    },
    "/apis/batch/v1": {"kind": "APIResourceList", "groupVersion": "batch/v1", "resources": [_resource("jobs", "Job")]},
}
