"""Signs of life: where none can arrive, silence proves nothing."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.orchestration.signs import silent

pytestmark = pytest.mark.integration


def test_where_no_event_arrives_nobody_is_judged(prefect_server: None) -> None:
    """The server answers, but events are sent to a port that nobody listens at."""
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    with socket.socket() as closed, get_client(sync_client=True) as client:
        closed.bind(("127.0.0.1", 0))
        EventsWorker.drain_all()  # it goes on sending to where it was started for
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{closed.getsockname()[1]}/api"}):
            dead = silent(client, {str(uuid4()): long_ago}, silence=timedelta(minutes=2), watch_seconds=8)
            EventsWorker.drain_all()
    assert dead == {}
