"""Under the network policies each pod reaches what it is told to use, and nothing finds a door that is not there."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Thing = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as the policies see it."""

    name: str
    labels: Thing
    containers: list[Thing]

    def port(self, port: int | str) -> set[int]:
        """Give the numbers of a port: a name may stand for none."""
        if isinstance(port, int):
            return {port}
        ports = [p for container in self.containers for p in container.get("ports", ())]
        return {p["containerPort"] for p in ports if p.get("name") == port}


def pods(objects: list[Thing]) -> Iterator[Pod]:
    for thing in objects:
        if thing["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = thing["spec"]["template"]
            name = f"{thing['kind']} {thing['metadata']['name']}"
            yield Pod(name, template["metadata"]["labels"], template["spec"]["containers"])
        if thing["kind"] == "InferenceService":
            # KServe's reconciler writes an "app" of its own over that of the predictor.
            predictor, name = thing["spec"]["predictor"], thing["metadata"]["name"]
            yield Pod(name, {**predictor["labels"], "app": f"isvc.{name}-predictor"}, predictor["containers"])


def flow_pods() -> Iterator[Pod]:
    for file in sorted(ROOT.glob("infra/work-pools/*.json")):
        template = json.loads(file.read_text())["job_configuration"]["job_manifest"]["spec"]["template"]
        # The worker tells its jobs where Prefect is.
        given = {"name": "prefect-job", "env": [{"name": "PREFECT_API_URL", "value": "http://prefect-server:4200/api"}]}
        yield Pod(f"job of {file.stem}", template["metadata"]["labels"], [*template["spec"]["containers"], given])


def policies(objects: list[Thing]) -> list[Thing]:
    return [thing for thing in objects if thing["kind"] == "NetworkPolicy"]


def selects(selector: Thing, labels: Thing) -> bool:
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    met = {"Exists": lambda e: e["key"] in labels, "NotIn": lambda e: labels.get(e["key"]) not in e["values"]}
    return all(met[e["operator"]](e) for e in selector.get("matchExpressions", ()))


def lets(objects: list[Thing], direction: str, pod: Pod, other: Pod, *, port: int, asked: Pod) -> bool:
    """Whether a policy of a pod opens a port to or from another one; names of ports are those of the one asked."""
    side = {"ingress": "from", "egress": "to"}[direction]
    for policy in policies(objects):
        if not selects(policy["spec"]["podSelector"], pod.labels):
            continue
        for rule in policy["spec"].get(direction, ()):
            peers = rule.get(side)
            meant = peers is None or any(
                "namespaceSelector" not in peer and selects(peer["podSelector"], other.labels) for peer in peers
            )
            if meant and ("ports" not in rule or any(port in asked.port(p["port"]) for p in rule["ports"])):
                return True
    return False


def addresses(pod: Pod, objects: list[Thing]) -> Iterator[tuple[str, int]]:
    """Each host and port that the environment of a pod names, config maps and secrets followed."""
    maps = {t["metadata"]["name"]: t.get("data", {}) for t in objects if t["kind"] == "ConfigMap"}
    secrets = {t["metadata"]["name"]: t.get("data", {}) for t in objects if t["kind"] == "Secret"}
    text = []
    for container in pod.containers:
        for variable in container.get("env", ()):
            text.append(variable.get("value", ""))
            if (reference := variable.get("valueFrom", {}).get("secretKeyRef")) is not None:
                text.append(base64.b64decode(secrets.get(reference["name"], {}).get(reference["key"], "")).decode())
        for source in container.get("envFrom", ()):
            text += maps.get(
                re.sub(r"{{ settings_map }}", "ltsft-settings", source["configMapRef"]["name"]), {}
            ).values()
    for value in text:
        yield from ((host, int(port)) for host, port in re.findall(r"^[\w+]+://(?:\S*@)?([\w-]+):(\d+)", value))


def test_each_pod_reaches_what_its_environment_names(rendered: list[Thing]) -> None:
    services = {t["metadata"]["name"]: t["spec"] for t in rendered if t["kind"] == "Service"}
    if not policies(rendered):
        pytest.skip("this overlay has no policies")
    there = list(pods(rendered))
    ways = 0
    for pod in (*there, *flow_pods()):
        for host, port in addresses(pod, rendered):
            service = services[host]
            assert port in {p["port"] for p in service["ports"]}, f"{pod.name}: {host}:{port}"
            [target] = [p["targetPort"] for p in service["ports"] if p["port"] == port]
            found = [other for other in there if selects({"matchLabels": service["selector"]}, other.labels)]
            assert found, f"no pod is {host}"
            for other in found:
                [number] = other.port(target)
                assert lets(rendered, "egress", pod, other, port=number, asked=other), f"{pod.name} may not ask {host}"
                assert lets(rendered, "ingress", other, pod, port=number, asked=other), f"{host} lets no {pod.name} in"
                ways += 1
    assert ways >= 6


def test_a_port_that_a_policy_opens_is_there(rendered: list[Thing]) -> None:
    there = [*pods(rendered), *flow_pods()]
    for policy in policies(rendered):
        name, spec = policy["metadata"]["name"], policy["spec"]
        selected = [pod for pod in there if selects(spec["podSelector"], pod.labels)]
        assert selected or name == "nodes", f"the policy {name} is about no pod"
        for rule in spec.get("ingress", ()):
            for port in rule.get("ports", ()):
                for pod in selected:
                    opened = {p["containerPort"] for c in pod.containers for p in c.get("ports", ())}
                    assert pod.port(port["port"]) & opened, f"{name}: {pod.name} has no port {port['port']}"
