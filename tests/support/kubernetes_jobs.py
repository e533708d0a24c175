"""The Job controller and the node of a stand-in cluster: jobs become pods, pods become local processes.

It follows the rules of the Job controller that matter here: backoffLimit, the pod failure policy (FailJob, Ignore,
Count on conditions and exit codes), activeDeadlineSeconds, ttlSecondsAfterFinished, and that the end of a container's
first process is the end of all of its processes. An Indexed job has as many pods as completions, each with its
JOB_COMPLETION_INDEX; the success policy decides when it is done, and a job that is done or failed asks its other pods
to go. There is no DNS: `environment_of` may tell the pods of a job where they meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kubernetes_objects import Objects, Thing, condition, now, uid_of

_MARK = "STANDIN_POD_UID"
_INDEX = "batch.kubernetes.io/job-completion-index"


class Node:
    """Runs the pods of jobs. `on_start` sees each pod just before its process starts."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, cwd: Path) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.cwd = cwd
        self.keep_pending: Callable[[Thing], str | None] = lambda pod: None
        self.on_start: Callable[[Thing], None] = lambda pod: None
        self.environment_of: Callable[[Thing], Mapping[str, str]] = lambda pod: {}
        self.started: list[Thing] = []
        self.config_maps: dict[str, dict[str, str]] = {}
        self._store = Objects()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._fates: dict[str, Thing] = {}  # by uid: how the end of a pod is told
        self._ends: dict[str, Thing] = {}  # by uid: how a job ends once its pods are gone
        self._done: dict[str, set[int]] = {}  # by uid: indexes of a job that succeeded
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        folder.mkdir(parents=True, exist_ok=True)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_job(self, job: Thing) -> None:
        job["status"] = {"active": 0, "startTime": now()}
        for index in range(job["spec"].get("completions", 1)):
            self._spawn(self._start_pod(job, index))
        if (deadline := job["spec"].get("activeDeadlineSeconds")) is not None:
            self._spawn(self._end_at_deadline(job, float(deadline)))

    async def _start_pod(self, job: Thing, index: int) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        labels = {**template.get("metadata", {}).get("labels", {}), "job-name": name}
        metadata = {
            **template.get("metadata", {}),
            "name": f"{name}-{index}-{secrets.token_hex(3)}",
            "labels": {**labels, "batch.kubernetes.io/job-name": name, _INDEX: str(index)},
            "ownerReferences": [{"kind": "Job", "apiVersion": "batch/v1", "name": name, "uid": uid_of(job)}],
        }
        pod = {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending", "conditions": []}}
        pod = self._store.add("pods", namespace, pod)
        job["status"]["active"] = len(self._active(job))
        self._store.tell("jobs", "MODIFIED", job)
        told = False
        while (why := self.keep_pending(copy.deepcopy(pod))) is not None:
            if not told:
                told = True
                pod["status"]["conditions"] = [condition("PodScheduled", "Unschedulable", why, "False")]
                self._store.tell("pods", "MODIFIED", pod)
                self._event(pod, "Warning", "FailedScheduling", why)
            await asyncio.sleep(0.3)
            if self._store.pod(uid_of(pod)) is None:
                return
        await self._run_pod(job, pod)

    async def _run_pod(self, job: Thing, pod: Thing) -> None:
        container = pod["spec"]["containers"][0]
        self.on_start(copy.deepcopy(pod))
        environment = {
            **self.environment,
            **self._environment(container),
            **self.environment_of(pod),
            _MARK: uid_of(pod),
        }
        if job["spec"].get("completionMode") == "Indexed":
            environment["JOB_COMPLETION_INDEX"] = pod["metadata"]["labels"][_INDEX]
        command = [*container.get("command", []), *container.get("args", [])]
        with self._log_file(pod).open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.cwd, start_new_session=True
            )
        self._processes[uid_of(pod)] = process
        self.started.append(copy.deepcopy(pod))
        state = {"running": {"startedAt": now()}}
        pod["status"] |= {
            "phase": "Running",
            "startTime": now(),
            "conditions": [condition("PodScheduled", "", "")],
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
        self._store.tell("pods", "MODIFIED", pod)
        while process.poll() is None:
            await asyncio.sleep(0.1)
        kill_all(uid_of(pod))
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
                    (s for s in self._store.by_kind["secrets"].values() if s["metadata"]["name"] == reference["name"]),
                    None,
                )
                if secret is not None and reference["key"] in secret.get("stringData", {}):
                    found[variable["name"]] = secret["stringData"][reference["key"]]
            elif reference := variable.get("valueFrom", {}).get("resourceFieldRef"):
                amounts, _, resource = reference["resource"].partition(".")
                found[variable["name"]] = str(rounded_up(container["resources"][amounts][resource]))
        return found

    def _end_pod(self, job: Thing, pod: Thing, code: int) -> None:
        fate = self._fates.pop(uid_of(pod), {})
        exit_code = 128 - code if code < 0 else code
        reason = fate.get("reason", "Completed" if exit_code == 0 else "Error")
        state = {"terminated": {"exitCode": exit_code, "reason": reason, "finishedAt": now()}}
        pod["status"]["containerStatuses"][0] |= {"ready": False, "state": state}
        pod["status"]["conditions"] += fate.get("conditions", [])
        pod["status"]["phase"] = "Succeeded" if exit_code == 0 else "Failed"
        self._store.tell("pods", "MODIFIED", pod)
        if (job["metadata"]["namespace"], job["metadata"]["name"]) in self._store.by_kind["jobs"]:
            self._after_pod(job, pod, exit_code)

    def _after_pod(self, job: Thing, pod: Thing, exit_code: int) -> None:
        status, spec = job["status"], job["spec"]
        index = int(pod["metadata"]["labels"][_INDEX])
        if pod["status"]["phase"] == "Succeeded":
            done = self._done.setdefault(uid_of(job), set())
            done.add(index)
            status["succeeded"] = len(done)
            rules = spec.get("successPolicy", {}).get("rules", [])
            if any(done >= {int(wanted) for wanted in rule["succeededIndexes"].split(",")} for rule in rules):
                self._end(job, condition("Complete", "SuccessPolicy", ""))
            elif len(done) == spec.get("completions", 1):
                self._end(job, condition("Complete", "", ""))
            else:
                self._end(job, None)
            return
        action = _policy_action(spec.get("podFailurePolicy", {}), pod, exit_code)
        if action != "Ignore":
            status["failed"] = status.get("failed", 0) + 1
        if action == "FailJob":
            self._end(job, condition("Failed", "PodFailurePolicy", "a rule of the pod failure policy matched"))
        elif status.get("failed", 0) > spec.get("backoffLimit", 6):
            self._end(job, condition("Failed", "BackoffLimitExceeded", "Job has reached the backoff limit"))
        elif uid_of(job) in self._ends:
            self._end(job, None)
        else:
            self._store.tell("jobs", "MODIFIED", job)
            self._spawn(self._start_pod(job, index))

    def _end(self, job: Thing, condition: Thing | None) -> None:
        """Say how a job ends, the first time; ask its other pods to go, and once they are gone it has ended."""
        if condition is not None and uid_of(job) not in self._ends:
            self._ends[uid_of(job)] = condition
            for pod in self._active(job):
                self._terminate(uid_of(pod), {})
        job["status"]["active"] = len(self._active(job))
        has_ended = uid_of(job) in self._ends and not self._active(job)
        if has_ended and "conditions" not in job["status"]:
            self._finish(job, self._ends[uid_of(job)])
        else:
            self._store.tell("jobs", "MODIFIED", job)

    def _active(self, job: Thing) -> list[Thing]:
        return [pod for pod in self._pods_of(job) if pod["status"]["phase"] in ("Pending", "Running")]

    def _finish(self, job: Thing, condition: Thing) -> None:
        job["status"] |= {"conditions": [condition], "completionTime": now()}
        self._store.tell("jobs", "MODIFIED", job)
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
            self._end(job, condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"))

    async def _delete_job(self, where: tuple[str, str], grace: int | None) -> None:
        job = self._store.by_kind["jobs"].get(where) or next(
            (job for (_, name), job in self._store.by_kind["jobs"].items() if name == where[1]), None
        )
        if job is None:
            return
        for pod in self._pods_of(job):
            self._terminate(uid_of(pod), {}, grace)
        while any(uid_of(pod) in self._processes for pod in self._pods_of(job)):
            await asyncio.sleep(0.1)
            for pod in self._pods_of(job):
                if (process := self._processes.get(uid_of(pod))) is not None and process.poll() is not None:
                    del self._processes[uid_of(pod)]
        for pod in self._pods_of(job):
            self._store.remove("pods", (pod["metadata"]["namespace"], pod["metadata"]["name"]))
        self._store.remove("jobs", (job["metadata"]["namespace"], job["metadata"]["name"]))

    def _pods_of(self, job: Thing) -> list[Thing]:
        owner = uid_of(job)
        return [p for p in self._store.by_kind["pods"].values() if p["metadata"]["ownerReferences"][0]["uid"] == owner]

    def _terminate(self, uid: str, fate: Thing, grace: int | None = None) -> None:
        """SIGTERM to the first process, SIGKILL to all after the grace period; a pending pod just goes."""
        pod, process = self._store.pod(uid), self._processes.get(uid)
        if pod is None:
            return
        if process is None:
            self._store.remove("pods", (pod["metadata"]["namespace"], pod["metadata"]["name"]))
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
                kill_all(uid)

        self._spawn(insist())

    def _kill(self, uid: str, fate: Thing) -> None:
        self._fates[uid] = fate or {"deleted": False}
        kill_all(uid)

    def _event(self, pod: Thing, type_: str, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        regarded = {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": uid_of(pod)}
        body = {"metadata": {"name": f"{metadata['name']}.{secrets.token_hex(4)}"}, "involvedObject": regarded}
        body |= {"type": type_, "reason": reason, "message": message, "lastTimestamp": now(), "count": 1}
        self._store.add("events", metadata["namespace"], body)

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


def kill_all(uid: str) -> None:
    """SIGKILL to every process of a pod, also those in sessions of their own."""
    mark = f"{_MARK}={uid}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def rounded_up(cores: str) -> int:
    """Give an amount of CPU, such as 2 or 500m, as Kubernetes gives it to a container: in whole cores, rounded up."""
    return math.ceil(int(cores[:-1]) / 1000 if cores.endswith("m") else float(cores))
