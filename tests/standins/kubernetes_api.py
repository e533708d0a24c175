"""A stand-in for a Kubernetes cluster: its API over HTTP, and a node that runs containers of jobs as local processes.

It speaks as much of the real API as prefect-kubernetes' worker and its observer (kopf) and our reconciler need: jobs,
pods with logs, events and secrets; create, read, list with label and field selectors, watch with resource versions and
bookmarks, delete with grace. It follows the rules of the Job controller that matter here: backoffLimit, the pod
failure policy (FailJob, Ignore, Count on conditions and exit codes), activeDeadlineSeconds, ttlSecondsAfterFinished,
and that the end of a container's first process is the end of all of its processes. An Indexed job has as many pods as
completions, each with its JOB_COMPLETION_INDEX; the success policy decides when it is done, and a job that is done or
failed asks its other pods to go. There is no DNS: `environment_of` may tell the pods of a job where they meet.

    with Cluster(folder, environment) as cluster:
        cluster.url
        cluster.evict(pod), cluster.vanish(pod), cluster.kill(pod), cluster.kill_out_of_memory(pod)
        cluster.keep_pending = lambda pod: "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        cluster.drop_watches(), cluster.forget()
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import re
import secrets
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

Thing = dict[str, Any]
_MARK = "STANDIN_POD_UID"
_INDEX = "batch.kubernetes.io/job-completion-index"
_KINDS = {"jobs": ("Job", "batch/v1"), "pods": ("Pod", "v1"), "events": ("Event", "v1"), "secrets": ("Secret", "v1")}
_LIST_PATHS = {"jobs": "/apis/batch/v1", "pods": "/api/v1", "events": "/api/v1", "secrets": "/api/v1"}


class Cluster:
    """The cluster; a context manager. `on_start` sees each pod just before its process starts."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, cwd: Path) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.cwd = cwd
        self.keep_pending: Callable[[Thing], str | None] = lambda pod: None
        self.on_start: Callable[[Thing], None] = lambda pod: None
        self.environment_of: Callable[[Thing], Mapping[str, str]] = lambda pod: {}
        self.started: list[Thing] = []
        self.config_maps: dict[str, dict[str, str]] = {}
        self._objects: dict[str, dict[tuple[str, str], Thing]] = {plural: {} for plural in _KINDS}
        self._history: list[tuple[int, str, str, Thing]] = []  # version, plural, type, object
        self._version = 100
        self._oldest = 0
        self._watches: set[asyncio.Task[Any]] = set()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._fates: dict[str, Thing] = {}  # by uid: how the end of a pod is told
        self._ends: dict[str, Thing] = {}  # by uid: how a job ends once its pods are gone
        self._done: dict[str, set[int]] = {}  # by uid: indexes of a job that succeeded
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        folder.mkdir(parents=True, exist_ok=True)

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
        return self._call(lambda: [copy.deepcopy(thing) for thing in self._objects[plural].values()])

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
        condition = _condition("DisruptionTarget", "EvictionByEvictionAPI", "Eviction API: evicting")
        self._call(lambda: self._terminate(_uid(pod), {"conditions": [condition]}))

    def vanish(self, pod: Thing) -> None:
        """Lose the node: everything is gone at once, and the garbage collector says so."""
        condition = _condition("DisruptionTarget", "DeletionByPodGC", "PodGC: node no longer exists")
        self._call(lambda: self._kill(_uid(pod), {"conditions": [condition]}))

    def kill(self, pod: Thing) -> None:
        """SIGKILL to all processes of a pod."""
        self._call(lambda: self._kill(_uid(pod), {}))

    def kill_out_of_memory(self, pod: Thing) -> None:
        self._call(lambda: self._kill(_uid(pod), {"reason": "OOMKilled"}))

    def drop_watches(self) -> None:
        """Cut all watches; clients come back with the version that they saw last."""
        self._call(lambda: [watch.cancel() for watch in self._watches])

    def forget(self) -> None:
        """Forget the history: a watch from an older version is answered with 410 Gone."""

        def forget() -> None:
            self._oldest = self._version
            self._history.clear()

        self._call(forget)

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
                _kill_all(uid)
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

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if path in _DISCOVERY:
            return web.json_response(_DISCOVERY[path])
        match = re.fullmatch(
            r"(/api/v1|/apis/batch/v1)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>\w+))?",
            path,
        )
        if match is None or match["plural"] not in _KINDS or _LIST_PATHS[match["plural"]] != match[1]:
            return _failure(404, f"the server could not find the requested resource {path}")
        namespace, plural, name = match["ns"], match["plural"], match["name"]
        if request.method == "POST":
            return await self._create(request, plural, namespace or "default")
        if name is None:
            if request.query.get("watch") in ("true", "1"):
                return await self._watch(request, plural, namespace)
            return self._list(request, plural, namespace)
        found = self._objects[plural].get((namespace or "default", name))
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
        if (namespace, metadata["name"]) in self._objects[plural]:
            return _failure(409, f'{plural} "{metadata["name"]}" already exists')
        made = self._add(plural, namespace, body)
        if plural == "jobs":
            made["status"] = {"active": 0, "startTime": _now()}
            for index in range(made["spec"].get("completions", 1)):
                self._spawn(self._start_pod(made, index))
            if (deadline := made["spec"].get("activeDeadlineSeconds")) is not None:
                self._spawn(self._end_at_deadline(made, float(deadline)))
        return web.json_response(made, status=201)

    def _list(self, request: web.Request, plural: str, namespace: str | None) -> web.Response:
        items = [thing for thing in self._objects[plural].values() if _matches(thing, request.query, namespace)]
        kind, version = _KINDS[plural]
        metadata = {"resourceVersion": str(self._version), "continue": ""}
        return web.json_response({"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, plural: str, namespace: str | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        since = int(request.query.get("resourceVersion") or self._version)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)

        async def send(type_: str, thing: Thing) -> None:
            await response.write(json.dumps({"type": type_, "object": thing}).encode() + b"\n")

        try:
            if since < self._oldest:
                await send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
                return response
            told_at = time.monotonic()
            while True:
                news = [row for row in self._history if row[0] > since]
                since = max(since, self._version)
                for _, of, type_, thing in news:
                    if of == plural and _matches(thing, request.query, namespace):
                        await send(type_, thing)
                        told_at = time.monotonic()
                if time.monotonic() - told_at > 5:
                    await send("BOOKMARK", {"metadata": {"resourceVersion": str(since)}, "kind": _KINDS[plural][0]})
                    told_at = time.monotonic()
                if self._version == since:
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
            self._terminate(_uid(found), {}, seconds)
        else:
            self._remove(plural, where)
        return web.json_response(found)

    # --- objects ---------------------------------------------------------------------------------------------------

    def _add(self, plural: str, namespace: str, body: Thing) -> Thing:
        kind, version = _KINDS[plural]
        made = {"kind": kind, "apiVersion": version, **copy.deepcopy(body)}
        made["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        self._objects[plural][(namespace, made["metadata"]["name"])] = made
        self._tell(plural, "ADDED", made)
        return made

    def _tell(self, plural: str, type_: str, thing: Thing) -> None:
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, plural, type_, copy.deepcopy(thing)))

    def _remove(self, plural: str, where: tuple[str, str]) -> None:
        thing = self._objects[plural].pop(where, None)
        if thing is not None:
            self._tell(plural, "DELETED", thing)

    def _pod(self, uid: str) -> Thing | None:
        return next((pod for pod in self._objects["pods"].values() if _uid(pod) == uid), None)

    # --- the Job controller and the node -----------------------------------------------------------------------------

    async def _start_pod(self, job: Thing, index: int) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        labels = {**template.get("metadata", {}).get("labels", {}), "job-name": name}
        metadata = {
            **template.get("metadata", {}),
            "name": f"{name}-{index}-{secrets.token_hex(3)}",
            "labels": {**labels, "batch.kubernetes.io/job-name": name, _INDEX: str(index)},
            "ownerReferences": [{"kind": "Job", "apiVersion": "batch/v1", "name": name, "uid": _uid(job)}],
        }
        pod = {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending", "conditions": []}}
        pod = self._add("pods", namespace, pod)
        job["status"]["active"] = len(self._active(job))
        self._tell("jobs", "MODIFIED", job)
        told = False
        while (why := self.keep_pending(copy.deepcopy(pod))) is not None:
            if not told:
                told = True
                pod["status"]["conditions"] = [_condition("PodScheduled", "Unschedulable", why, "False")]
                self._tell("pods", "MODIFIED", pod)
                self._event(pod, "Warning", "FailedScheduling", why)
            await asyncio.sleep(0.3)
            if self._pod(_uid(pod)) is None:
                return
        await self._run_pod(job, pod)

    async def _run_pod(self, job: Thing, pod: Thing) -> None:
        container = pod["spec"]["containers"][0]
        self.on_start(copy.deepcopy(pod))
        environment = {**self.environment, **self._environment(container), **self.environment_of(pod), _MARK: _uid(pod)}
        if job["spec"].get("completionMode") == "Indexed":
            environment["JOB_COMPLETION_INDEX"] = pod["metadata"]["labels"][_INDEX]
        command = [*container.get("command", []), *container.get("args", [])]
        with self._log_file(pod).open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.cwd, start_new_session=True
            )
        self._processes[_uid(pod)] = process
        self.started.append(copy.deepcopy(pod))
        state = {"running": {"startedAt": _now()}}
        pod["status"] |= {
            "phase": "Running",
            "startTime": _now(),
            "conditions": [_condition("PodScheduled", "", "")],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": f"standin://{container['image']}",
                    "ready": True,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        self._tell("pods", "MODIFIED", pod)
        while process.poll() is None:
            await asyncio.sleep(0.1)
        _kill_all(_uid(pod))
        self._end_pod(job, pod, process.returncode)

    def _environment(self, container: Thing) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.config_maps.get(source.get("configMapRef", {}).get("name"), {})
        for variable in container.get("env", []):
            if "value" in variable:
                found[variable["name"]] = str(variable["value"] or "")
            elif reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                secret = next(
                    (s for s in self._objects["secrets"].values() if s["metadata"]["name"] == reference["name"]), None
                )
                if secret is not None and reference["key"] in secret.get("stringData", {}):
                    found[variable["name"]] = secret["stringData"][reference["key"]]
        return found

    def _end_pod(self, job: Thing, pod: Thing, code: int) -> None:
        fate = self._fates.pop(_uid(pod), {})
        exit_code = 128 - code if code < 0 else code
        reason = fate.get("reason", "Completed" if exit_code == 0 else "Error")
        state = {"terminated": {"exitCode": exit_code, "reason": reason, "finishedAt": _now()}}
        pod["status"]["containerStatuses"][0] |= {"ready": False, "state": state}
        pod["status"]["conditions"] += fate.get("conditions", [])
        pod["status"]["phase"] = "Succeeded" if exit_code == 0 else "Failed"
        self._tell("pods", "MODIFIED", pod)
        if (job["metadata"]["namespace"], job["metadata"]["name"]) in self._objects["jobs"]:
            self._after_pod(job, pod, exit_code)

    def _after_pod(self, job: Thing, pod: Thing, exit_code: int) -> None:
        status, spec = job["status"], job["spec"]
        index = int(pod["metadata"]["labels"][_INDEX])
        if pod["status"]["phase"] == "Succeeded":
            done = self._done.setdefault(_uid(job), set())
            done.add(index)
            status["succeeded"] = len(done)
            rules = spec.get("successPolicy", {}).get("rules", [])
            if any(done >= {int(wanted) for wanted in rule["succeededIndexes"].split(",")} for rule in rules):
                self._end(job, _condition("Complete", "SuccessPolicy", ""))
            elif len(done) == spec.get("completions", 1):
                self._end(job, _condition("Complete", "", ""))
            else:
                self._end(job, None)
            return
        action = _policy_action(spec.get("podFailurePolicy", {}), pod, exit_code)
        if action != "Ignore":
            status["failed"] = status.get("failed", 0) + 1
        if action == "FailJob":
            self._end(job, _condition("Failed", "PodFailurePolicy", "a rule of the pod failure policy matched"))
        elif status.get("failed", 0) > spec.get("backoffLimit", 6):
            self._end(job, _condition("Failed", "BackoffLimitExceeded", "Job has reached the backoff limit"))
        elif _uid(job) in self._ends:
            self._end(job, None)
        else:
            self._tell("jobs", "MODIFIED", job)
            self._spawn(self._start_pod(job, index))

    def _end(self, job: Thing, condition: Thing | None) -> None:
        """Say how a job ends, the first time; ask its other pods to go, and once they are gone it has ended."""
        if condition is not None and _uid(job) not in self._ends:
            self._ends[_uid(job)] = condition
            for pod in self._active(job):
                self._terminate(_uid(pod), {})
        job["status"]["active"] = len(self._active(job))
        has_ended = _uid(job) in self._ends and not self._active(job)
        if has_ended and "conditions" not in job["status"]:
            self._finish(job, self._ends[_uid(job)])
        else:
            self._tell("jobs", "MODIFIED", job)

    def _active(self, job: Thing) -> list[Thing]:
        return [pod for pod in self._pods_of(job) if pod["status"]["phase"] in ("Pending", "Running")]

    def _finish(self, job: Thing, condition: Thing) -> None:
        job["status"] |= {"conditions": [condition], "completionTime": _now()}
        self._tell("jobs", "MODIFIED", job)
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is not None:

            async def expire() -> None:
                await asyncio.sleep(float(ttl))
                await self._delete_job((job["metadata"]["namespace"], job["metadata"]["name"]), 0)

            self._spawn(expire())

    async def _end_at_deadline(self, job: Thing, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if job["status"].get("active"):
            job["status"]["failed"] = job["status"].get("failed", 0) + 1
            self._end(job, _condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"))

    async def _delete_job(self, where: tuple[str, str], grace: int | None) -> None:
        job = self._objects["jobs"].get(where) or next(
            (job for (_, name), job in self._objects["jobs"].items() if name == where[1]), None
        )
        if job is None:
            return
        for pod in self._pods_of(job):
            self._terminate(_uid(pod), {}, grace)
        while any(_uid(pod) in self._processes for pod in self._pods_of(job)):
            await asyncio.sleep(0.1)
            for pod in self._pods_of(job):
                if (process := self._processes.get(_uid(pod))) is not None and process.poll() is not None:
                    del self._processes[_uid(pod)]
        for pod in self._pods_of(job):
            self._remove("pods", (pod["metadata"]["namespace"], pod["metadata"]["name"]))
        self._remove("jobs", (job["metadata"]["namespace"], job["metadata"]["name"]))

    def _pods_of(self, job: Thing) -> list[Thing]:
        owner = _uid(job)
        return [p for p in self._objects["pods"].values() if p["metadata"]["ownerReferences"][0]["uid"] == owner]

    def _terminate(self, uid: str, fate: Thing, grace: int | None = None) -> None:
        """SIGTERM to the first process, SIGKILL to all after the grace period; a pending pod just goes."""
        pod, process = self._pod(uid), self._processes.get(uid)
        if pod is None:
            return
        if process is None:
            self._remove("pods", (pod["metadata"]["namespace"], pod["metadata"]["name"]))
            return
        if process.poll() is not None:
            return
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        self._fates[uid] = fate or {"deleted": True}
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

        async def insist() -> None:
            await asyncio.sleep(seconds)
            if process.poll() is None:
                _kill_all(uid)

        self._spawn(insist())

    def _kill(self, uid: str, fate: Thing) -> None:
        self._fates[uid] = fate or {"deleted": False}
        _kill_all(uid)

    def _event(self, pod: Thing, type_: str, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        regarded = {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": _uid(pod)}
        body = {"metadata": {"name": f"{metadata['name']}.{secrets.token_hex(4)}"}, "involvedObject": regarded}
        body |= {"type": type_, "reason": reason, "message": message, "lastTimestamp": _now(), "count": 1}
        self._add("events", metadata["namespace"], body)

    def _log_file(self, pod: Thing) -> Path:
        return self.folder / f"{pod['metadata']['name']}.log"


def _policy_action(policy: Thing, pod: Thing, exit_code: int) -> str:
    """The action of the first rule of a pod failure policy that matches; Count without one."""
    there = {(c["type"], c["status"]) for c in pod["status"]["conditions"]}
    for rule in policy.get("rules", []):
        wanted = {(c["type"], c.get("status", "True")) for c in rule.get("onPodConditions", [])}
        codes = rule.get("onExitCodes", {})
        is_in = exit_code in codes.get("values", [])
        if wanted & there or (codes and (is_in if codes["operator"] == "In" else not is_in)):
            return str(rule["action"])
    return "Count"


def _kill_all(uid: str) -> None:
    """SIGKILL to every process of a pod, also those in sessions of their own."""
    mark = f"{_MARK}={uid}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _matches(thing: Thing, query: Mapping[str, str], namespace: str | None) -> bool:
    metadata = thing["metadata"]
    if namespace is not None and metadata["namespace"] != namespace:
        return False
    labels = metadata.get("labels", {})
    for wanted in filter(None, query.get("labelSelector", "").split(",")):
        name, separator, value = wanted.partition("=")
        value = value.lstrip("=")
        if name.endswith("!"):
            if labels.get(name[:-1]) == value:
                return False
        elif name not in labels or (separator and labels[name] != value):
            return False
    for wanted in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = wanted.partition("=")
        node: Any = thing
        for step in path.split("."):
            node = node.get(step, {}) if isinstance(node, dict) else {}
        if node != value.lstrip("="):
            return False
    return True


def _condition(type_: str, reason: str, message: str, status: str = "True") -> Thing:
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}


def _failure(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code)


def _uid(thing: Thing) -> str:
    return str(thing["metadata"]["uid"])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
