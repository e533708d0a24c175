"""The canary: a fresh process that loads a released artifact as any user of MLflow would, and answers.

``python -m tasks.releases.canary`` reads ``{"uri": ..., "rows": [{column: value}, ...]}`` from standard input and
writes, as its last line, ``{"answers": [{column: value}, ...]}``. MLflow is the one that ``MLFLOW_TRACKING_URI`` names:
an address may hold a password and is never an argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ltsft.errors import ReleaseError, ServiceError
from ltsft.evaluation import Outcomes
from ltsft.release import Canary
from ltsft.serving import Reader
from tasks.tracking import is_away

_AWAY = 75
"""Exit code of a canary that could not reach MLflow or its store."""
_FEW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
_TOLERATED = 0.02  # share of what is counted that may come out otherwise: another batch shape rounds otherwise


def run_canary(
    uri: str,
    *,
    tracking_uri: str,
    reader: type[Reader],
    rows: Sequence[Any],
    outcomes: Outcomes,
    timeout_seconds: float,
) -> Canary:
    """Have a fresh process load an artifact and answer test rows, and compare with what was scored.

    Args:
        uri: such as ``models:/ud.pos.fo/3``.
        tracking_uri: the MLflow that it is in.
        reader: how the objective is served.
        rows: labelled rows of the test set.
        outcomes: what came out for each of them when the composition was scored, shape (rows, 2).
        timeout_seconds: after which the canary is dead.

    Raises:
        ServiceError: the process could not reach MLflow or its store.
    """
    begin = time.monotonic()
    try:
        asked = [reader.asked(row).as_row() for row in rows]
        message = compare(_ask(uri, tracking_uri, asked, timeout_seconds), reader, rows, outcomes)
    except ReleaseError as error:
        message = str(error)
    seconds = time.monotonic() - begin
    told = message or f"a fresh process loaded it and answered {len(rows)} rows as when it was scored"
    return Canary(answered=not message, seconds=seconds, message=f"{told} ({seconds:.1f} s)")


def compare(answers: Sequence[Mapping[str, Any]], reader: type[Reader], rows: Sequence[Any], outcomes: Outcomes) -> str:
    """Say what is wrong with the answers to test rows, in words; nothing if they are as when they were scored."""
    if len(answers) != len(rows):
        return f"it answered {len(answers)} rows instead of {len(rows)}"
    off = 0.0
    for number, (row, answer, recorded) in enumerate(zip(rows, answers, outcomes, strict=True)):
        try:
            found, _ = reader.right(row, answer)
        except (ValueError, KeyError, TypeError) as error:
            return f"its answer to row {number} is none: {error}"
        off += abs(found - float(recorded[0]))
    counted = float(outcomes[:, 1].sum())
    if off > max(1.0, _TOLERATED * counted):
        return f"{off:g} of {counted:g} that are counted came out otherwise than when it was scored"
    return ""


def _ask(uri: str, tracking_uri: str, rows: Sequence[Mapping[str, Any]], timeout: float) -> list[dict[str, Any]]:
    asked = json.dumps({"uri": uri, "rows": list(rows)})
    environment = {
        **_FEW_RETRIES,
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_REGISTRY_URI": tracking_uri,
    }
    command = [sys.executable, "-m", "tasks.releases.canary"]
    try:
        done = subprocess.run(  # noqa: S603
            command, input=asked, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"a fresh process did not answer within {timeout:g} s") from error
    if done.returncode:
        lines = done.stderr.replace(tracking_uri, "<tracking URI>").strip().splitlines() or ["no message"]
        kind = ServiceError if done.returncode == _AWAY else ReleaseError
        raise kind(f"a fresh process could not load it: {lines[-1]}")
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])["answers"]
    return found


def _main() -> None:
    from ltsft.heap import collect_seldom
    from tasks.quiet import quiet_services

    collect_seldom()
    quiet_services()
    asked = json.load(sys.stdin)
    from tasks.releases.pyfunc import predict_rows

    try:
        print(json.dumps({"answers": predict_rows(asked["uri"], asked["rows"])}))
    except Exception as error:
        if not is_away(error):
            raise
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        sys.exit(_AWAY)


if __name__ == "__main__":
    _main()
