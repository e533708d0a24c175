"""The gates of a release: what was measured of a composition against what the project asks for. Pure: it reads nothing.

Every gate gives a verdict with its numbers, whether it passed or not and whether it decides or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ltsft.config import ReleaseGate
from ltsft.evaluation import Outcomes, PairedDifference, paired_bootstrap

__all__ = ["Canary", "Measured", "Verdict", "has_passed", "judge"]


@dataclass(frozen=True)
class Canary:
    """What a fresh process said that loaded the artifact.

    Attributes:
        answered: whether it loaded and gave a right answer to every example.
        seconds: until it had.
        message: why not, or what it answered.
    """

    answered: bool
    seconds: float
    message: str


@dataclass(frozen=True)
class Measured:
    """What is known of the composition that is to be released.

    Attributes:
        target_task: which floor holds.
        outcomes: (numerator, denominator) of each test sentence, such as (correct, counted).
        majority: score of always giving the most frequent answer; None where that has no meaning.
        overlap: share of the smaller support that both SFTs change.
        sign_conflict: share of the common support where they have opposite signs.
        language_loss_change: nats that the task SFT adds to the language's masked-LM loss; None if not measured.
        unvalidated: subjects of the products in it whose data have no validation on record.
        canary: what the canary said.
    """

    target_task: str
    outcomes: Outcomes = field(repr=False)
    majority: float | None
    overlap: float
    sign_conflict: float
    language_loss_change: float | None
    unvalidated: tuple[str, ...]
    canary: Canary

    @property
    def score(self) -> float:
        """Sum of the numerators over that of the denominators."""
        return float(self.outcomes[:, 0].sum() / max(1, self.outcomes[:, 1].sum()))


@dataclass(frozen=True)
class Verdict:
    """What one gate says.

    Attributes:
        gate: "floor", "champion", "interference", "functional", "validation" or "canary".
        passed: whether the bounds are kept.
        decides: whether a release needs it.
        numbers: what was compared, each measured value and its bound.
        message: one sentence for people.
    """

    gate: str
    passed: bool
    decides: bool
    numbers: Mapping[str, float]
    message: str

    @property
    def stops(self) -> bool:
        """Whether this verdict alone keeps the composition from being released."""
        return self.decides and not self.passed


def judge(gate: ReleaseGate, measured: Measured, champion: Outcomes | None) -> list[Verdict]:
    """Judge a composition.

    Args:
        gate: the thresholds.
        measured: what is known of the composition.
        champion: outcomes of the champion on the same test sentences; None for a first release, of which the floor and
            the canary alone decide.

    Returns:
        One verdict for each gate, in the order of `Verdict.gate`.
    """
    has_champion = champion is not None
    verdicts = [_floor(gate, measured)]
    if champion is not None:
        compared = paired_bootstrap(measured.outcomes, champion, confidence=gate.confidence, resamples=gate.resamples)
        verdicts.append(_champion(gate, compared))
    verdicts.append(_interference(gate, measured, decides=has_champion))
    if measured.language_loss_change is not None:
        verdicts.append(_functional(gate, measured.language_loss_change, decides=has_champion))
    verdicts.append(_validation(measured, decides=has_champion))
    canary = measured.canary
    numbers = {"seconds": canary.seconds, "max_seconds": gate.canary_seconds}
    return [*verdicts, Verdict("canary", canary.answered, True, numbers, canary.message)]


def has_passed(verdicts: Sequence[Verdict]) -> bool:
    """Whether no gate that decides was failed."""
    return not any(verdict.stops for verdict in verdicts)


def _floor(gate: ReleaseGate, measured: Measured) -> Verdict:
    floor = gate.min_scores.get(measured.target_task, gate.min_score)
    score, numbers, beside = measured.score, {}, ""
    if measured.majority is not None:
        floor = max(floor, measured.majority + gate.min_over_majority)
        numbers, beside = {"majority": measured.majority}, f" (majority class {measured.majority:.4f})"
    message = f"score {score:.4f}, at least {floor:.4f} is asked{beside}"
    numbers = {"score": score, "floor": floor, **numbers}
    return Verdict("floor", score >= floor, True, numbers, message)


def _champion(gate: ReleaseGate, compared: PairedDifference) -> Verdict:
    message = (
        f"{100 * compared.difference:+.2f} points to the champion, at {100 * gate.confidence:g} % confidence no less "
        f"than {100 * compared.lower:+.2f}; {100 * -gate.max_drop:+.2f} is allowed ({compared.sentences} sentences)"
    )
    numbers = {
        "difference": compared.difference,
        "lower": compared.lower,
        "max_drop": gate.max_drop,
        "standard_error": compared.standard_error,
        "probability_worse": compared.probability_worse,
        "sentences": float(compared.sentences),
    }
    return Verdict("champion", compared.lower >= -gate.max_drop, True, numbers, message)


def _interference(gate: ReleaseGate, measured: Measured, *, decides: bool) -> Verdict:
    passed = measured.overlap <= gate.max_overlap and measured.sign_conflict <= gate.max_sign_conflict
    message = (
        f"overlap {measured.overlap:.4f} (at most {gate.max_overlap:g}), "
        f"sign conflict {measured.sign_conflict:.4f} (at most {gate.max_sign_conflict:g})"
    )
    numbers = {
        "overlap": measured.overlap,
        "max_overlap": gate.max_overlap,
        "sign_conflict": measured.sign_conflict,
        "max_sign_conflict": gate.max_sign_conflict,
    }
    return Verdict("interference", passed, decides, numbers, message)


def _functional(gate: ReleaseGate, change: float, *, decides: bool) -> Verdict:
    bound = gate.max_language_loss_change
    message = f"composing changes the language's masked-LM loss by {change:+.4f} nats (at most {bound:g})"
    numbers = {"language_loss_change": change, "max_language_loss_change": bound}
    return Verdict("functional", change <= bound, decides, numbers, message)


def _validation(measured: Measured, *, decides: bool) -> Verdict:
    missing = measured.unvalidated
    message = "all data behind it passed validation" if not missing else f"no validation of {', '.join(missing)}"
    return Verdict("validation", not missing, decides, {"unvalidated": float(len(missing))}, message)
