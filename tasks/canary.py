"""The canary: a fresh process that loads a released artifact as any user of MLflow would, and answers.

``python -m tasks.canary`` reads ``{"uri": ..., "sentences": [[word, ...], ...]}`` from standard input and writes, as
its last line, ``{"labels": [[label, ...], ...]}``. MLflow is the one that ``MLFLOW_TRACKING_URI`` names: an address may
hold a password and is never an argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from ltsft.errors import ReleaseError
from ltsft.verdicts import Canary

_TOLERATED = 0.02  # share of the words whose label may differ: another batch shape rounds otherwise


def run_canary(
    uri: str,
    *,
    tracking_uri: str,
    sentences: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    correct: Sequence[float],
    labels: Sequence[str],
    timeout_seconds: float,
) -> Canary:
    """Have a fresh process load an artifact and answer sentences, and compare with what was scored.

    Args:
        uri: such as ``models:/ud.pos.fo/3``.
        tracking_uri: the MLflow that it is in.
        sentences: words of each sentence.
        gold: the right label of each word.
        correct: how many were right in each sentence when the composition was scored.
        labels: the label set.
        timeout_seconds: after which the canary is dead.
    """
    begin = time.monotonic()
    try:
        answer = _ask(uri, tracking_uri, sentences, timeout_seconds)
        message = _problem(answer, gold, correct, labels)
    except ReleaseError as error:
        message = str(error)
    seconds = time.monotonic() - begin
    words = sum(map(len, sentences))
    told = message or f"a fresh process loaded it and labelled {words} words as when it was scored"
    return Canary(answered=not message, seconds=seconds, message=f"{told} ({seconds:.1f} s)")


def _ask(uri: str, tracking_uri: str, sentences: Sequence[Sequence[str]], timeout: float) -> list[list[str | None]]:
    asked = json.dumps({"uri": uri, "sentences": [list(words) for words in sentences]})
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_REGISTRY_URI": tracking_uri}
    command = [sys.executable, "-m", "tasks.canary"]
    try:
        done = subprocess.run(  # noqa: S603
            command, input=asked, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"a fresh process did not answer within {timeout:g} s") from error
    if done.returncode:
        lines = done.stderr.replace(tracking_uri, "<tracking URI>").strip().splitlines() or ["no message"]
        raise ReleaseError(f"a fresh process could not load it: {lines[-1]}")
    found: list[list[str | None]] = json.loads(done.stdout.strip().splitlines()[-1])["labels"]
    return found


def _problem(
    answer: list[list[str | None]], gold: Sequence[Sequence[str]], correct: Sequence[float], labels: Sequence[str]
) -> str:
    lengths, wanted = [len(row) for row in answer], [len(row) for row in gold]
    if lengths != wanted:
        return f"it labelled {sum(lengths)} words in {len(answer)} sentences instead of {sum(wanted)} in {len(gold)}"
    unknown = sorted({str(label) for row in answer for label in row if label is not None} - set(labels))
    if unknown:
        return f"it answered {unknown[0]!r}, which is not in the label set"
    right = [sum(a == b for a, b in zip(row, want, strict=True)) for row, want in zip(answer, gold, strict=True)]
    off = sum(abs(a - b) for a, b in zip(right, correct, strict=True))
    if off > max(1.0, _TOLERATED * sum(wanted)):
        return f"{sum(right)} of {sum(wanted)} words are right, when it was scored {sum(correct):g} were"
    return ""


def _main() -> None:
    from tasks.settings import quiet_services

    quiet_services()
    asked = json.load(sys.stdin)
    from tasks.tracking import predict_words

    print(json.dumps({"labels": predict_words(asked["uri"], asked["sentences"])}))


if __name__ == "__main__":
    _main()
