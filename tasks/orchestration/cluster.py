"""What the cluster says: the jobs of flow runs, and the pods that wait. The only importer of kubernetes_asyncio.

Inside the cluster it uses the pod's service account, elsewhere the kubeconfig that ``KUBECONFIG`` names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from ltsft.errors import ServiceError

FLOW_RUN_LABEL = "prefect.io/flow-run-id"
PENDING_TIMEOUT = "ltsft.io/pending-timeout"
_PAGE = 500
_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """A job of a flow run.

    Attributes:
        name: in its namespace.
        flow_run: id of the flow run that it was made for.
        is_active: whether it has, or waits for, a pod.
        created: when it was made (UTC).
        waiting_since: when the pod was made that is not on a node yet; None if it runs or ended.
        pending_timeout: seconds that a pod may wait for a node; None if the job does not say.
        told: what the cluster says of a pod that waits, one event a line.
    """

    name: str
    flow_run: str
    is_active: bool
    created: datetime
    waiting_since: datetime | None = None
    pending_timeout: float | None = None
    told: tuple[str, ...] = ()


def read_jobs(namespace: str) -> list[Job]:
    """List the jobs of flow runs in a namespace.

    Raises:
        ServiceError: the cluster cannot be reached or refuses.
    """

    async def read(client: Any) -> list[Job]:
        from kubernetes_asyncio.client import BatchV1Api, CoreV1Api

        batch, core = BatchV1Api(client), CoreV1Api(client)
        jobs = await _all(lambda **page: batch.list_namespaced_job(namespace, label_selector=FLOW_RUN_LABEL, **page))
        pods = await _all(lambda **page: core.list_namespaced_pod(namespace, label_selector=FLOW_RUN_LABEL, **page))
        pending = sorted((p for p in pods if p.status.phase == "Pending"), key=lambda p: p.metadata.creation_timestamp)
        # Of several pods of a job the one that waits longest.
        waiting = {pod.metadata.labels.get("job-name"): pod for pod in reversed(pending)}
        return [await _job(core, namespace, job, waiting.get(job.metadata.name)) for job in jobs]

    return _ask(read)


def delete_job(namespace: str, name: str) -> None:
    """Delete a job with its pods; one that is gone is no error.

    Raises:
        ServiceError: the cluster cannot be reached or refuses.
    """

    async def delete(client: Any) -> None:
        from kubernetes_asyncio.client import BatchV1Api
        from kubernetes_asyncio.client.exceptions import ApiException

        try:
            await BatchV1Api(client).delete_namespaced_job(name, namespace, propagation_policy="Foreground")
        except ApiException as error:
            if error.status != 404:
                raise

    _ask(delete)


async def _job(core: Any, namespace: str, job: Any, waiting: Any) -> Job:
    timeout = (job.metadata.annotations or {}).get(PENDING_TIMEOUT, "").removesuffix("s")
    told: tuple[str, ...] = ()
    if waiting is not None:
        wanted = f"involvedObject.name={waiting.metadata.name}"
        events = await core.list_namespaced_event(namespace, field_selector=wanted)
        found = dict.fromkeys(f"{event.reason}: {event.message}" for event in events.items)
        told = tuple(found) or (f"pod {waiting.metadata.name} is pending; the cluster gives no reason",)
    is_over = any(condition.type in ("Complete", "Failed") for condition in job.status.conditions or ())
    return Job(
        name=job.metadata.name,
        flow_run=job.metadata.labels[FLOW_RUN_LABEL],
        is_active=not is_over and job.metadata.deletion_timestamp is None,
        created=_utc(job.metadata.creation_timestamp),
        waiting_since=_utc(waiting.metadata.creation_timestamp) if waiting is not None else None,
        pending_timeout=float(timeout) if timeout else None,
        told=told,
    )


async def _all(read: Callable[..., Awaitable[Any]]) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = await read(limit=_PAGE, **({"_continue": token} if token else {}))
        found += page.items
        token = page.metadata._continue
        if not token:
            return found


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _ask(work: Callable[[Any], Awaitable[_T]]) -> _T:
    async def connected() -> _T:
        import aiohttp
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client import ApiClient
        from kubernetes_asyncio.client.exceptions import ApiException

        try:
            try:
                config.load_incluster_config()  # type: ignore[no-untyped-call]
                client = ApiClient()
            except config.ConfigException:
                client = await config.new_client_from_config(config_file=os.environ.get("KUBECONFIG"))
            async with client:
                return await work(client)
        except (ApiException, aiohttp.ClientError, config.ConfigException, OSError) as error:
            raise ServiceError(
                f"the cluster refused or cannot be reached: {type(error).__name__}: {error}; the flow needs the "
                "service account ltsft-reconciler (infra/k8s), outside the cluster KUBECONFIG"
            ) from error

    return asyncio.run(connected())
