"""Log lines of a run: a verdict is told in words, once; a traceback is for bugs."""

from __future__ import annotations

import logging

from ltsft.errors import LtsftError

_PREFECT = ("prefect.flow_runs", "prefect.task_runs")


class _WithoutVerdicts(logging.Filter):
    """Drops Prefect's tracebacks of our own errors: their message says it all, and the state of the run holds it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, LtsftError)


_FILTER = _WithoutVerdicts()


def drop_tracebacks_of_verdicts() -> None:
    """Let Prefect log our own errors without traceback; calling it again changes nothing."""
    for name in _PREFECT:
        logging.getLogger(name).addFilter(_FILTER)
