"""The gates of a release: each one alone stops what it should, and its numbers are there either way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ltsft.config.gates import ReleaseGate
from ltsft.release.verdicts import Canary, Measured, has_passed, judge

GATE = ReleaseGate(resamples=500)


def outcomes(share: float, sentences: int = 400, words: int = 10) -> np.ndarray:
    """Outcomes of which a share is right, spread over the sentences as evenly as can be."""
    right = np.diff(np.floor(np.linspace(0, share * sentences * words, sentences + 1) + 1e-9))
    return np.stack([right, np.full(sentences, words)], axis=1).astype(np.int64)


GOOD = Measured(
    target_task="pos",
    outcomes=outcomes(0.8),
    majority=0.2,
    overlap=0.1,
    sign_conflict=0.5,
    language_loss_change=0.4,
    unvalidated=(),
    canary=Canary(True, 3.0, "answered"),
)


def stopped(measured: Measured, champion: np.ndarray | None, gate: ReleaseGate = GATE) -> list[str]:
    return [verdict.gate for verdict in judge(gate, measured, champion) if verdict.stops]


def test_what_keeps_every_bound_passes_and_all_numbers_are_recorded() -> None:
    verdicts = judge(GATE, GOOD, outcomes(0.8))

    assert has_passed(verdicts)
    assert [v.gate for v in verdicts] == ["floor", "champion", "interference", "functional", "validation", "canary"]
    numbers = {f"{v.gate}.{name}": value for v in verdicts for name, value in v.numbers.items()}
    assert numbers["floor.score"] == pytest.approx(0.8)
    assert numbers["champion.difference"] == 0.0
    assert numbers["functional.language_loss_change"] == 0.4
    assert numbers["canary.seconds"] == 3.0


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"outcomes": outcomes(0.29)}, "floor"),
        ({"majority": 0.81}, "floor"),
        ({"outcomes": outcomes(0.75)}, "champion"),
        ({"overlap": 0.95}, "interference"),
        ({"sign_conflict": 0.7}, "interference"),
        ({"language_loss_change": 3.1}, "functional"),
        ({"unvalidated": ("language fo",)}, "validation"),
        ({"canary": Canary(False, 1.0, "it did not load")}, "canary"),
    ],
)
def test_each_gate_alone_stops_a_release(change: dict[str, Any], gate: str) -> None:
    champion = change.get("outcomes", GOOD.outcomes) if gate == "floor" else outcomes(0.8)
    assert stopped(replace(GOOD, **change), champion) == [gate]


def test_of_a_first_release_the_floor_and_the_canary_alone_decide() -> None:
    bad = replace(GOOD, overlap=0.95, language_loss_change=9.0, unvalidated=("cell pos fo",))
    verdicts = judge(GATE, bad, None)

    assert has_passed(verdicts)
    assert [v.gate for v in verdicts if not v.passed] == ["interference", "functional", "validation"]
    assert stopped(replace(bad, outcomes=outcomes(0.1)), None) == ["floor"]
    assert stopped(replace(bad, canary=Canary(False, 1.0, "dead")), None) == ["canary"]


def test_a_small_test_set_cannot_show_that_a_candidate_is_no_worse() -> None:
    def taking_turns(sentences: int) -> tuple[np.ndarray, np.ndarray]:
        """Equally good on average; each is better on every other sentence."""
        first = np.resize([[10, 10], [6, 10]], (sentences, 2))
        return first, first[::-1]

    few, many = taking_turns(20), taking_turns(5_000)
    assert stopped(replace(GOOD, outcomes=few[0]), few[1]) == ["champion"]
    assert stopped(replace(GOOD, outcomes=many[0]), many[1]) == []


def test_a_target_task_may_have_a_floor_of_its_own() -> None:
    gate = ReleaseGate(min_scores={"pos": 0.85}, resamples=100)
    assert stopped(GOOD, None, gate) == ["floor"]
    assert stopped(replace(GOOD, target_task="nli"), None, gate) == []
