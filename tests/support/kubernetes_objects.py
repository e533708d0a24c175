"""The objects of a stand-in cluster, with the history that watches read. See kubernetes_api.py."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Thing = dict[str, Any]
KINDS = {"jobs": ("Job", "batch/v1"), "pods": ("Pod", "v1"), "events": ("Event", "v1"), "secrets": ("Secret", "v1")}


class Objects:
    """All objects by kind, then by namespace and name; each change has a resource version of its own."""

    def __init__(self) -> None:
        self.by_kind: dict[str, dict[tuple[str, str], Thing]] = {plural: {} for plural in KINDS}
        self.history: list[tuple[int, str, str, Thing]] = []  # version, plural, type, object
        self.version = 100
        self.oldest = 0

    def add(self, plural: str, namespace: str, body: Thing) -> Thing:
        kind, version = KINDS[plural]
        made = {"kind": kind, "apiVersion": version, **copy.deepcopy(body)}
        made["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        self.by_kind[plural][(namespace, made["metadata"]["name"])] = made
        self.tell(plural, "ADDED", made)
        return made

    def tell(self, plural: str, type_: str, thing: Thing) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, plural, type_, copy.deepcopy(thing)))

    def remove(self, plural: str, where: tuple[str, str]) -> None:
        thing = self.by_kind[plural].pop(where, None)
        if thing is not None:
            self.tell(plural, "DELETED", thing)

    def pod(self, uid: str) -> Thing | None:
        return next((pod for pod in self.by_kind["pods"].values() if uid_of(pod) == uid), None)


def matches(thing: Thing, query: Mapping[str, str], namespace: str | None) -> bool:
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


def condition(type_: str, reason: str, message: str, status: str = "True") -> Thing:
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}


def uid_of(thing: Thing) -> str:
    return str(thing["metadata"]["uid"])


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
