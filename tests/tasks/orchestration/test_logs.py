"""A verdict is told without a traceback, a bug with one."""

from __future__ import annotations

import logging

from ltsft.errors import ServiceError, ValidationError
from tasks.orchestration.logs import drop_tracebacks_of_verdicts


def test_prefect_logs_the_traceback_of_a_bug_and_not_of_a_verdict() -> None:
    shown: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    logger, handler = logging.getLogger("prefect.flow_runs"), Keep()
    drop_tracebacks_of_verdicts()
    drop_tracebacks_of_verdicts()
    logger.addHandler(handler)
    try:
        for error in (ValidationError("bad text"), ServiceError("MLflow is away"), KeyError("a bug")):
            try:
                raise error
            except Exception:
                logger.exception("Encountered exception during execution: %s", type(error).__name__)
        logger.error("language fo: the data did not pass")
    finally:
        logger.removeHandler(handler)

    assert shown == ["Encountered exception during execution: KeyError", "language fo: the data did not pass"]


def test_only_a_service_that_is_away_is_tried_again() -> None:
    from prefect.states import Failed

    from tasks.orchestration.retries import is_service_away

    assert is_service_away(None, None, Failed(data=ServiceError("away")))  # type: ignore[arg-type]
    assert not is_service_away(None, None, Failed(data=ValidationError("bad")))  # type: ignore[arg-type]
    assert not is_service_away(None, None, Failed(data=KeyError("a bug")))  # type: ignore[arg-type]
