"""Events to Prefect: something happened that a deployment waits for."""

from __future__ import annotations

import httpx
from prefect.client.orchestration import get_client
from prefect.events.schemas.events import Event, Resource

from ltsft.errors import ServiceError
from ltsft.project import ProjectRef
from tasks.arrivals.inbox import Arrival

TEXT_ARRIVED = "ltsft.text.arrived"
PROJECT_LABEL = "ltsft.project"
"""Names the project that an event is about; automations match it."""


def announce(project: ProjectRef, name: str, arrival: Arrival) -> None:
    """Tell Prefect that the text of a language has arrived, and wait until it took the news.

    Raises:
        ServiceError: Prefect's server refuses or cannot be reached.
    """
    facts = {
        "prefect.resource.id": f"ltsft.language.{name}.{arrival.code}",
        "prefect.resource.name": arrival.name,
        PROJECT_LABEL: name,
        "ltsft.language": arrival.code,
    }
    event = Event(
        event=TEXT_ARRIVED,
        resource=Resource.model_validate(facts),
        payload={
            "language": arrival.code,
            "fingerprint": arrival.fingerprint,
            "project": project.model_dump(mode="json"),
        },
        id=arrival.event_id(name),
    )
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceError(
            f"Prefect did not take the event of {arrival.code}: {type(error).__name__}: {error}"
        ) from error
