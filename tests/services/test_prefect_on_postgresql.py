"""Prefect's server with all its services, on PostgreSQL."""

from __future__ import annotations

import pytest
from prefect_services import PrefectServices
from servers import postgres_programs

DATABASE = "postgresql"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        postgres_programs() is None, reason="PostgreSQL is not here: no initdb on the path or in /usr/lib/postgresql"
    ),
]


class TestOnPostgreSQL(PrefectServices):
    pass
