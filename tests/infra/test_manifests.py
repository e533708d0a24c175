"""Every manifest and every job that a work pool renders is what Kubernetes accepts, and as locked down as it says."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.flows import load_flow_from_entrypoint
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

ROOT = Path(__file__).parents[2]
VERSION = "1.34.0"
CUSTOM = {"InferenceService"}
"""Kinds of KServe: their schema comes with its controller and is not in that of Kubernetes."""
POOLS = sorted(ROOT.glob("infra/work-pools/*.json"))
EXPERIMENTS = ("compare-methods", "sweep-density", "search-weights")
"""They have no schedule, and can be started as they are."""
Thing = dict[str, Any]
WRITTEN = ("HOME", "PREFECT_HOME", "PREFECT_UI_STATIC_DIRECTORY", "HF_HOME")
"""Variables that name a folder to write to."""
POD_FIELDS = {
    *(
        "serviceAccountName",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "securityContext",
        "priorityClassName",
    ),
    *("terminationGracePeriodSeconds", "containers", "volumes"),
}
"""What a pod has of the fields of KServe's predictor."""


@pytest.fixture(params=POOLS, ids=lambda file: file.stem)
def job(request: pytest.FixtureRequest) -> Thing:
    """The job that prefect-kubernetes' worker makes of a pool's template and its defaults."""
    template = json.loads(request.param.read_text())
    return render(template, {})


class NoPrefect:
    """No template of ours names a block or a variable that Prefect's server would have to be asked for."""

    async def __aenter__(self) -> NoPrefect:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass


def render(template: Thing, values: Thing) -> Thing:
    make = KubernetesWorkerJobConfiguration.from_template_and_values
    configuration = asyncio.run(make(template, values, client=NoPrefect()))
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="quick-fox"))
    return configuration.job_manifest


def pod_specs(objects: list[Thing]) -> Iterator[tuple[str, Thing]]:
    for thing in objects:
        if thing["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield f"{thing['kind']} {thing['metadata'].get('name', '')}", thing["spec"]["template"]["spec"]


def test_every_object_of_an_overlay_is_valid(rendered: list[Thing]) -> None:
    for thing in rendered:
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, VERSION, strict=True)


def test_the_pod_of_an_inference_service_is_valid_and_the_one_of_the_deployment(tmp_path: Path) -> None:
    specs = {}
    for overlay, kind in (("serving", "Deployment"), ("kserve", "InferenceService")):
        command = [shutil.which("kubectl") or "kubectl", "kustomize", ROOT / "infra/k8s/overlays" / overlay]
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl is not installed; it renders the overlays")
        things = yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        found = [t for t in things if t["kind"] == kind and t["metadata"]["name"] == "serve"]
        assert len(found) == 1
        spec = found[0]["spec"]
        specs[overlay] = spec["predictor"] if kind == "InferenceService" else spec["template"]["spec"]
    pod = {name: value for name, value in specs["kserve"].items() if name in POD_FIELDS}
    thing = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "serve"}, "spec": pod}
    kubernetes_validate.validate(thing, VERSION, strict=True)
    assert_locked_down("serve", pod, may_have_token=False)
    ours, theirs = (specs[overlay]["containers"][0] for overlay in ("serving", "kserve"))
    for name in ("image", "args", "env", "envFrom", "resources", "securityContext", "volumeMounts"):
        assert ours[name] == theirs[name], f"{name} differs between the two ways to serve"
    assert specs["serving"]["volumes"] == specs["kserve"]["volumes"]


def test_all_pods_are_locked_down(rendered: list[Thing]) -> None:
    for name, spec in pod_specs(rendered):
        assert_locked_down(name, spec, may_have_token=name.startswith("Deployment prefect-worker"))


def test_what_a_container_writes_lies_where_it_may_write(rendered: list[Thing]) -> None:
    for name, spec in pod_specs(rendered):
        for container in spec["containers"]:
            places = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            environment = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
            folders = {v: environment[v] for v in WRITTEN if v in environment}
            for variable, folder in folders.items():
                assert any(Path(folder).is_relative_to(place) for place in places), f"{name}: {variable}={folder}"
            if "prefect server start" in " ".join(container.get("args", ())):
                assert "PREFECT_UI_STATIC_DIRECTORY" in folders, "the server writes its pages when it starts"
                lasting = {v["name"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
                kept = [m["mountPath"] for m in container["volumeMounts"] if m["name"] in lasting]
                assert any(Path(folders["PREFECT_HOME"]).is_relative_to(place) for place in kept), "it has leases"


def test_no_secret_is_written_anywhere_but_in_secrets(rendered: list[Thing]) -> None:
    secrets = [thing for thing in rendered if thing["kind"] == "Secret"]
    others = yaml.safe_dump([thing for thing in rendered if thing["kind"] != "Secret"])
    import base64

    for secret in secrets:
        for name, value in secret["data"].items():
            plain = base64.b64decode(value).decode().strip()
            if "user" not in name and name != "access-key":
                assert plain not in others, f"{secret['metadata']['name']}/{name}"
    names = re.compile("password|secret|token|auth_string|connection_url|store_uri", re.I)
    for name, spec in pod_specs(rendered):
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            for variable in container.get("env", ()):
                if names.search(variable["name"]) and not variable["name"].endswith(("_NAME", "_KEY", "CONFIG_PATH")):
                    assert "secretKeyRef" in variable.get("valueFrom", {}), f"{name}: {variable['name']}"


def test_each_name_that_a_pod_needs_is_there(rendered: list[Thing], request: pytest.FixtureRequest) -> None:
    if "[overlays/dev]" not in request.node.name:
        pytest.skip("the secrets and databases of this overlay come from outside")
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in rendered}
    jobs = [render(json.loads(file.read_text()), {}) for file in POOLS]
    text = yaml.safe_dump_all([*rendered, *jobs])
    for kind, pattern in {
        "Secret": r"secretKeyRef:\n\s+key: [\w-]+\n\s+name: ([\w-]+)",
        "ConfigMap": r"configMapRef:\n\s+name: ([\w-]+)",
        "PersistentVolumeClaim": r"claimName: ([\w-]+)",
        "ServiceAccount": r"serviceAccountName: ([\w-]+)",
        "PriorityClass": r"priorityClassName: ([\w-]+)",
        "Service": r"subdomain: ([\w-]+)",
    }.items():
        found = {(kind, name) for name in re.findall(pattern, text)}
        assert found, kind
        assert found - there <= {("Secret", "ltsft-hugging-face")}, "all but the optional one"


def test_every_pod_that_has_the_cache_finds_data_and_bases_where_flow_runs_put_them(rendered: list[Thing]) -> None:
    def placed(container: Thing) -> Thing:
        return {v["name"]: v["value"] for v in container["env"] if v["name"] in ("LTSFT_DATA_ROOT", "HF_HOME")}

    flows = [render(json.loads(file.read_text()), {})["spec"]["template"]["spec"]["containers"][0] for file in POOLS]
    wanted = placed(flows[0])
    assert wanted == {"LTSFT_DATA_ROOT": "/cache/data", "HF_HOME": "/cache/huggingface"}
    assert placed(flows[1]) == wanted
    templates = [spec for _, spec in pod_specs(rendered)]
    templates += [t["spec"]["predictor"] for t in rendered if t["kind"] == "InferenceService"]
    for container in (container for spec in templates for container in spec["containers"]):
        if any(mount["mountPath"] == "/cache" for mount in container["volumeMounts"]):
            assert placed(container) == wanted, container["name"]


def test_the_pool_for_cpus_gets_the_image_that_bootstrap_has(kubectl: str, manifests: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bootstrap"
    shutil.copytree(manifests / "bootstrap", folder)
    file = folder / "kustomization.yaml"
    image = f"registry.example.org:5000/ltsft@sha256:{'1' * 64}"
    name, digest = image.split("@")
    file.write_text(re.sub(r"newName: ltsft, newTag: cpu", f"newName: '{name}', digest: '{digest}'", file.read_text()))

    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True)

    [container] = yaml.safe_load(done.stdout)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image
    assert f"--job-variable=ltsft-cpu.image={image}" in container["args"]


def test_only_the_services_push_others_out_of_a_full_node(rendered: list[Thing]) -> None:
    classes = {
        c["metadata"]["name"]: c for c in yaml.safe_load_all((ROOT / "infra/k8s/base/priorities.yaml").read_text())
    }
    pushing = {name for name, c in classes.items() if c.get("preemptionPolicy") != "Never"}
    assert pushing == {"ltsft-services"}
    assert classes["ltsft-services"]["value"] == max(c["value"] for c in classes.values())

    for thing in rendered:
        if thing["kind"] in ("Deployment", "StatefulSet"):
            assert thing["spec"]["template"]["spec"].get("priorityClassName") == "ltsft-services", thing["metadata"][
                "name"
            ]
        if thing["kind"] == "InferenceService":
            assert thing["spec"]["predictor"].get("priorityClassName") == "ltsft-services"
    jobs = [render(json.loads(file.read_text()), {}) for file in POOLS] + [t for t in rendered if t["kind"] == "Job"]
    for job in jobs:
        assert job["spec"]["template"]["spec"]["priorityClassName"] not in pushing


def test_a_rendered_job_is_valid(job: Thing) -> None:
    # The worker wants these two where Kubernetes has no such fields (and drops them); the rest is as it should be.
    spec = job["spec"]["template"]["spec"]
    assert (spec.pop("parallelism"), spec.pop("completions")) == (1, 1)
    job["metadata"]["name"] = job["metadata"].pop("generateName") + "x"

    kubernetes_validate.validate(job, VERSION, strict=True)


def test_a_rendered_job_leaves_retries_to_prefect_and_the_flow_knows(job: Thing) -> None:
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailJob", "Ignore would start a second pod for the run"
    environment = {v["name"]: v.get("value") for v in pod["containers"][0]["env"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert environment["PREFECT_PLUGINS_ENABLED"] == "true", "it waits for Prefect's server"
    assert pod["terminationGracePeriodSeconds"] > 30 + 15, "Prefect gives the training 30 s, and needs some itself"
    assert {"activeDeadlineSeconds", "ttlSecondsAfterFinished"} <= spec.keys()
    assert re.fullmatch(r"\d+s", job["metadata"]["annotations"]["ltsft.io/pending-timeout"])


def test_a_rendered_job_is_locked_down(job: Thing) -> None:
    assert_locked_down("job", job["spec"]["template"]["spec"], may_have_token=False)


@pytest.mark.parametrize("file", POOLS, ids=lambda file: file.stem)
def test_each_variable_of_a_pool_is_used_and_each_one_used_has_a_default(file: Path) -> None:
    template = json.loads(file.read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    variables = template["variables"]["properties"]

    assert used == variables.keys()
    assert {name for name, facts in variables.items() if "default" not in facts} == {"name", "command"}


def quantity(text: str | int) -> float:
    """Read `250m`, `2` or `3Gi`; memory in GiB."""
    number, unit = re.fullmatch(r"(\d+)([a-zA-Z]*)", str(text)).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "m": 0.001, "Gi": 1, "Mi": 1 / 1024}[unit]


def test_the_dev_overlay_fits_two_nodes_of_4_cpus_and_8_gib_without_a_gpu(kubectl: str, manifests: Path) -> None:
    made = {}
    for overlay in ("overlays/dev", "overlays/dev/bootstrap"):
        done = subprocess.run([kubectl, "kustomize", manifests / overlay], capture_output=True, text=True, check=True)
        made[overlay] = list(yaml.safe_load_all(done.stdout))
    [given] = (spec["containers"][0]["args"] for _, spec in pod_specs(made["overlays/dev/bootstrap"]))
    variables = dict(word.removeprefix("--job-variable=").split("=", 1) for word in given if "job-variable" in word)
    limits = dict(word.removeprefix("--pool-limit=").split("=", 1) for word in given if "pool-limit" in word)
    needed = {"cpu": 0.0, "memory": 0.0}
    for file in POOLS:
        template = json.loads(file.read_text())
        known = template["variables"]["properties"]
        own = {
            n.removeprefix(f"{file.stem}."): v for n, v in variables.items() if n.rpartition(".")[0] in ("", file.stem)
        }
        assert own.keys() <= known.keys()
        values = {n: v if known[n]["type"] == "string" else json.loads(v) for n, v in own.items()}
        for name, value in values.items():
            assert known[name].get("minimum", 0) <= value if isinstance(value, int) else True, name
        job = render(template, values)
        spec = job["spec"]["template"]["spec"]
        requests = spec["containers"][0]["resources"]["requests"]
        assert not spec.get("nodeSelector")
        assert requests.get("nvidia.com/gpu", 0) == 0
        for resource in needed:
            needed[resource] += int(limits[file.stem]) * quantity(requests[resource])
    # All flow runs share a node, whose system keeps some for itself; the services have the other one.
    assert needed["cpu"] <= 3.5, needed
    assert needed["memory"] <= 7, needed
    services = [(spec, thing["spec"].get("replicas", 1)) for thing in made["overlays/dev"]
                for _, spec in pod_specs([thing])]  # fmt: skip
    for resource, there in (("cpu", 3.5), ("memory", 7)):
        asked = [n * quantity(s["containers"][0]["resources"]["requests"][resource]) for s, n in services]
        assert sum(asked) <= there, resource


def test_what_a_deployment_changes_arrives_in_the_job() -> None:
    template = json.loads((ROOT / "infra/work-pools/ltsft-gpu.json").read_text())

    job = render(template, {"gpu_count": 4, "image": "x@sha256:1", "env": {"A": "b"}, "node_selector": {"zone": "a"}})

    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["image"] == "x@sha256:1"
    assert spec["nodeSelector"] == {"zone": "a"}
    assert {"name": "A", "value": "b"} in container["env"]
    assert sum(v["name"] == "AWS_SECRET_ACCESS_KEY" for v in container["env"]) == 1


def assert_threads_follow_the_request(container: Thing) -> None:
    [threads] = [variable for variable in container["env"] if variable["name"] == "OMP_NUM_THREADS"]
    assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}, "in whole cores, rounded up"
    assert container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize("file", POOLS, ids=lambda file: file.stem)
def test_a_job_computes_with_as_many_threads_as_it_requests_cpus(file: Path) -> None:
    template = json.loads(file.read_text())
    for values in ({}, {"cpu_request": "7"}):
        [container] = render(template, values)["spec"]["template"]["spec"]["containers"]
        assert_threads_follow_the_request(container)
    assert container["resources"]["requests"]["cpu"] == "7"
    [container] = render(template, {"env": {"OMP_NUM_THREADS": "2"}})["spec"]["template"]["spec"]["containers"]
    assert [v for v in container["env"] if v["name"] == "OMP_NUM_THREADS"][-1] == {
        "name": "OMP_NUM_THREADS",
        "value": "2",
    }, "a pool or a deployment may say otherwise"


@pytest.mark.parametrize("file", ["serving/serve.yaml", "overlays/kserve/inference-service.yaml"])
def test_a_server_computes_with_as_many_threads_as_it_requests_cpus(file: str) -> None:
    found = [t for t in yaml.safe_load_all((ROOT / "infra/k8s" / file).read_text()) if t["metadata"]["name"] == "serve"]
    spec = next(t["spec"] for t in found if t["kind"] in ("Deployment", "InferenceService"))
    pod = spec["predictor"] if "predictor" in spec else spec["template"]["spec"]
    assert_threads_follow_the_request(pod["containers"][0])


def test_a_training_by_several_nodes_is_one_job_whose_pods_find_and_reach_each_other(rendered: list[Thing]) -> None:
    policies = [t for t in rendered if t["kind"] == "NetworkPolicy" and t["metadata"]["name"] == "nodes"]
    services = [t for t in rendered if t["kind"] == "Service" and t["metadata"]["name"] == "ltsft-nodes"]
    if not policies and not services:
        pytest.skip("this overlay has no trainings")
    template = json.loads((ROOT / "infra/work-pools/ltsft-gpu.json").read_text())
    alone, together = (render(template, {"nodes": count}) for count in (1, 4))

    spec = together["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}, "the flow says when the job is done"
    assert spec["template"]["spec"]["containers"][0]["command"] == ["python", "-m", "tasks.pod"]
    [policy], [service] = [thing["spec"] for thing in policies], [thing["spec"] for thing in services]
    labels = together["spec"]["template"]["metadata"]["labels"]
    assert selects(policy["podSelector"], labels)
    assert not selects(policy["podSelector"], alone["spec"]["template"]["metadata"]["labels"])
    for direction, side in (("ingress", "from"), ("egress", "to")):
        assert policy[direction] == [{side: [{"podSelector": policy["podSelector"]}]}]
    assert service["clusterIP"] == "None", "each pod has a name of its own"
    assert selects({"matchLabels": service["selector"]}, labels)


def selects(selector: Thing, labels: Thing) -> bool:
    """Whether a label selector matches."""
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    met = {"Exists": lambda e: e["key"] in labels, "NotIn": lambda e: labels.get(e["key"]) not in e["values"]}
    return all(met[e["operator"]](e) for e in selector.get("matchExpressions", ()))


def deployments() -> list[Thing]:
    return list(yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"])


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_each_deployment_can_be_loaded_and_names_a_pool_and_variables_that_exist(deployment: Thing) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    pool = ROOT / f"infra/work-pools/{deployment['work_pool']['name']}.json"
    variables = json.loads(pool.read_text())["variables"]["properties"]
    given = {**deployment.get("parameters", {}), **(deployment.get("triggers") or [{}])[0].get("parameters", {})}

    assert flow.name == deployment["name"], "a project has one deployment of each flow"
    hooks = [*flow.on_crashed_hooks, *flow.on_cancellation_hooks]
    assert not hooks, "tasks/patience.py has them not looked for"
    assert deployment["work_pool"].get("job_variables", {}).keys() <= variables.keys()
    known = set(inspect.signature(flow.fn).parameters)
    assert given.keys() <= known
    assert "project" in known - given.keys(), "bootstrap gives it its project"
    if deployment.get("schedules") or deployment["name"] in EXPERIMENTS:
        assert flow.validate_parameters(given | {"project": {"file": "configs/ud.yaml"}})


def test_a_comment_line_stands_above_each_deployment() -> None:
    lines = (ROOT / "prefect.yaml").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"  - name: ", line)]

    assert len(starts) == len(deployments())
    assert all(lines[i - 1].startswith("  # ") for i in starts)


def assert_locked_down(name: str, spec: Thing, *, may_have_token: bool) -> None:
    pod = spec["securityContext"]
    assert pod["runAsNonRoot"] is True, name
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert spec["automountServiceAccountToken"] is may_have_token, name
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        locked = container["securityContext"]
        assert locked["allowPrivilegeEscalation"] is False, name
        assert locked["readOnlyRootFilesystem"] is True, name
        assert locked["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"].keys() == {"requests", "limits"}, name
        assert ":latest" not in container["image"], name
