"""Prefect's server with all its services, on SQLite."""

from __future__ import annotations

import pytest
from prefect_services import PrefectServices

DATABASE = "sqlite"
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


class TestOnSQLite(PrefectServices):
    pass
