"""Signs of life: where none can arrive, silence proves nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from tasks.orchestration.signs import silent

pytestmark = pytest.mark.integration


def test_where_no_event_arrives_nobody_is_judged(prefect_server: None) -> None:
    """The server that tests share keeps no events."""
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    with get_client(sync_client=True) as client:
        assert silent(client, {str(uuid4()): long_ago}, silence=timedelta(minutes=2), watch_seconds=2) == {}
