"""Releasing as tasks: put a composition forward, measure it, ask the canary, judge, move the alias, write it down.

Every step may be repeated: after a kill between any two of them the same command ends well. What commits a release is
one write, the move of the alias ``champion``; it happens under a lock, after a look whether the champion is still the
one that the composition was compared with. The lock of a promotion is held while it is measured, that of the move for
a moment only, so that a rollback never waits for a promotion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ltsft.canonical import canonical_json
from ltsft.composition import shown_weight
from ltsft.errors import ConfigError, ReleaseError
from ltsft.evaluation import Outcomes, interference
from ltsft.project import cell_subject
from ltsft.release import Canary, Composition, Measured, Slot, Verdict, has_passed, judge, load_parts
from ltsft.serving import reader_class
from ltsft.training import labelled_rows
from tasks.evaluation import MEASURED_SEED, stored_outcomes, target_scorer
from tasks.orchestration import task
from tasks.releases.canary import run_canary
from tasks.releases.composing import log_model, parents, scored_step
from tasks.releases.registry import (
    CANDIDATE,
    CELL_RUN,
    CHAMPION,
    FROM_VERSION,
    PASSED,
    PROMOTION,
    REASON,
    SCORE,
    SEED,
    TEST,
    TO_VERSION,
    VERDICT,
    Event,
    Version,
    open_registry,
    release_subject,
)
from tasks.tracking import FinishedRun, NewRun, RunHandle, user_name
from tasks.training import target_objective
from tasks.workspace import HELD_OUT, Workspace

CANARY_ROWS = 8


class ChampionMovedError(ReleaseError):
    """Another release was made while this one was measured: it is to be compared with that one."""


@dataclass(frozen=True)
class Candidate:
    """A composition that was put forward.

    Attributes:
        composition: what it is.
        version: its number in the registry.
        cell: the record of the cell that scored it.
        seed: of its task SFT.
        test: fingerprints of the test data.
    """

    composition: Composition
    version: Version
    cell: FinishedRun
    seed: int
    test: str

    @property
    def slot(self) -> Slot:
        """What it answers for."""
        return self.composition.slot

    def told_score(self, score: float) -> str:
        """Say a score; where the matrix shows the mean over several seeds, of which seed it is, and that mean."""
        metrics = self.cell.metrics
        if metrics.get("seeds", 1) <= 1:
            return f"score {score:.4f}"
        mean, seeds = metrics["score"], int(metrics["seeds"])
        return f"score {score:.4f} (seed {self.seed}; the mean over {seeds} seeds is {mean:.4f})"


def wanted_slots(workspace: Workspace, *, language: str | None = None, target_task: str | None = None) -> list[Slot]:
    """List the cells to release: those asked for, or all that are scored.

    Raises:
        ConfigError: the project has no such cell.
        ReleaseError: nothing is scored yet.
    """
    cells = workspace.plan.of_kind("cell")
    slots = [Slot(step.product.language, str(step.product.target_task)) for step in cells]
    found = [s for s in slots if language in (None, s.language) and target_task in (None, s.target_task)]
    if not found:
        raise ConfigError(
            f"the project has no cell of language {language or 'any'} and target task {target_task or 'any'}; allowed "
            f"are {', '.join(map(str, slots)) or 'none'}"
        )
    if language is None or target_task is None:
        scored = {step.product.subject for step in cells if step.is_up_to_date}
        found = [s for s in found if cell_subject(s.target_task, s.language) in scored]
    if not found:
        raise ReleaseError("nothing is scored yet; ltsft run makes and scores the matrix")
    return found


@contextmanager
def promotion_lock(workspace: Workspace, slot: Slot) -> Iterator[None]:
    """One promotion of a (language, target task) at a time; another one waits and then finds what this one did."""
    with workspace.claim(hash_of("promotion", workspace.project.name, *slot), f"a release of {slot}"):
        yield


@contextmanager
def move_lock(workspace: Workspace, slot: Slot) -> Iterator[None]:
    """One move of the alias at a time; held for a moment."""
    key = hash_of("move", workspace.project.name, *slot)
    with workspace.claim(key, f"a move of the champion of {slot}"):
        workspace.check_claim(key)
        yield


def open_promotion(
    workspace: Workspace, composition: Composition, *, over: int | None, reason: str, who: str, kind: str = PROMOTION
) -> RunHandle:
    """Open the record of a promotion or a candidacy, or go on with the one that a kill left open."""
    slot = composition.slot
    gate = workspace.project.gates.release.model_dump(mode="json")
    parts = {"kind": kind, "composition": composition.key, "over": over, "gate": gate}
    return workspace.tracker.open_run(
        NewRun(
            name=f"{'promote' if kind == PROMOTION else 'put forward'} {slot}",
            kind=kind,
            subject=release_subject(slot),
            key=hash_of(canonical_json(parts), workspace.project.name, *slot),
            parts=parts,
            tags={
                **_slot_tags(slot),
                "mlflow.user": who or user_name(),
                REASON: reason,
                "ltsft.parents": parents(composition),
            },
            params={"composition": composition.key, "over": over, **{f"gate.{n}": v for n, v in gate.items()}},
        )
    )


@task(name="put forward", task_run_name="put forward {composition.target_task} {composition.language}", is_retried=True)
def put_forward(workspace: Workspace, composition: Composition, run: RunHandle) -> Candidate:
    """Log the model, make a version of it unless there is one, and point the alias ``candidate`` at it."""
    slot, registry = composition.slot, open_registry(workspace)
    step = scored_step(workspace, slot)
    cell = workspace.tracker.find(step.product.key)
    if cell is None:
        raise ReleaseError(f"the run of {step.product.subject} is gone from MLflow; ltsft run scores it again")
    seed = workspace.project.recipes[slot.target_task].seeds[0]
    test = json.dumps(step.product.parts["test"])
    version = registry.find(composition)
    if version is None:
        log_model(workspace, composition, run)
        tags = {**_slot_tags(slot), CELL_RUN: cell.run_id, SEED: str(seed), TEST: test}
        tags |= {"ltsft.parents": parents(composition), "ltsft.promotion_run": run.run_id}
        version = registry.register(composition, run_id=run.run_id, tags=tags)
    registry.set_alias(slot, CANDIDATE, version.number)
    return Candidate(composition, version, cell, seed, test)


@task(name="measure", task_run_name="measure {candidate.version.name}")
def measure(workspace: Workspace, candidate: Candidate, canary: Canary) -> Measured:
    """Gather what the gates ask for: from the record of the cell where it has it, else measured now."""
    cell, slot = candidate.cell, candidate.slot
    metrics = dict(cell.metrics)
    if cell.tags.get(MEASURED_SEED) != str(candidate.seed):
        metrics |= _measured_now(workspace, candidate)
    return Measured(
        target_task=slot.target_task,
        outcomes=outcomes_of(workspace, candidate),
        majority=metrics.get("score_majority"),
        overlap=metrics.get("interference.overlap", 0.0),  # a task SFT alone meets nothing
        sign_conflict=metrics.get("interference.sign_conflict", 0.0),
        language_loss_change=metrics.get("functional.language_loss_change"),
        unvalidated=_unvalidated(workspace, candidate),
        canary=canary,
    )


@task(name="ask canary", task_run_name="ask canary {candidate.version.name}")
def ask_canary(workspace: Workspace, candidate: Candidate) -> Canary:
    """Have a fresh process load the version from the registry and answer some test rows.

    Raises:
        ServiceError: MLflow or its store is away, so that its silence says nothing about the version.
    """
    target = workspace.project.target_tasks[candidate.slot.target_task]
    rows = labelled_rows(target, target.test[candidate.slot.language])[:CANARY_ROWS]
    canary = run_canary(
        candidate.version.uri,
        tracking_uri=workspace.tracker.tracking_uri,
        reader=reader_class(target.objective),
        rows=rows,
        outcomes=outcomes_of(workspace, candidate)[: len(rows)],
        timeout_seconds=workspace.project.gates.release.canary_seconds,
    )
    if not canary.answered:
        open_registry(workspace).champion(candidate.slot)  # is it there at all?
    return canary


@task(name="judge", task_run_name="judge {candidate.version.name}")
def judge_candidate(
    workspace: Workspace, candidate: Candidate, measured: Measured, run: RunHandle, *, over: int | None
) -> list[Verdict]:
    """Put the gates to a candidate and write down what each says, whether it passed or not."""
    champion = _champion_outcomes(workspace, candidate, over) if over is not None else None
    verdicts = judge(workspace.project.gates.release, measured, champion)
    run.log_metrics({f"gate.{v.gate}.{name}": value for v in verdicts for name, value in v.numbers.items()})
    run.log_metrics({f"gate.{v.gate}.passed": float(v.passed) for v in verdicts})
    run.log_text(json.dumps([asdict(v) for v in verdicts], indent=2), "verdicts.json")
    page = version_page(candidate, measured, verdicts, over=over)
    run.log_text(page, "verdicts.md")
    registry = open_registry(workspace)
    registry.describe(candidate.version, page)
    registry.tag(
        candidate.version,
        {
            VERDICT: PASSED if has_passed(verdicts) else "refused",
            SCORE: f"{measured.score:.6f}",
            "ltsft.overlap": f"{measured.overlap:.6f}",
            "ltsft.sign_conflict": f"{measured.sign_conflict:.6f}",
        },
    )
    return verdicts


@task(name="move champion", task_run_name="move champion {candidate.version.name}", is_retried=True)
def move_champion(workspace: Workspace, candidate: Candidate, run: RunHandle, *, over: int | None) -> None:
    """Make the candidate the champion, if the champion is still the one that it was compared with.

    Raises:
        ChampionMovedError: it is not.
    """
    registry, slot = open_registry(workspace), candidate.slot
    with move_lock(workspace, slot):
        now = registry.champion(slot)
        if registry.is_rolled_back(candidate.version):
            raise ReleaseError(f"{slot}: version {candidate.version.number} was rolled back while it was measured")
        if now not in (over, candidate.version.number):
            raise ChampionMovedError(f"{slot}: the champion was version {over or 'none'} and is {now or 'none'} now")
        run.set_tags({FROM_VERSION: str(over or "none"), TO_VERSION: str(candidate.version.number)})
        registry.set_alias(slot, CHAMPION, candidate.version.number)
        run.finish()


def close_records(workspace: Workspace, slot: Slot, champion: int | None) -> Event | None:
    """Close the record of a move that was made, and whose process was killed before it said so; give the last one."""
    last = None
    for event in open_registry(workspace).events(slot):
        if event.after == champion:
            last = event
            if not event.is_finished:
                workspace.tracker.end(event.run_id, "FINISHED")
    return last


def outcomes_of(workspace: Workspace, candidate: Candidate) -> Outcomes:
    """Give (correct, counted) of each test sentence under a candidate."""
    found = stored_outcomes(workspace, candidate.cell.run_id, candidate.seed)
    return found if found is not None else _scored_now(workspace, candidate.composition)


def version_page(candidate: Candidate, measured: Measured, verdicts: Sequence[Verdict], *, over: int | None) -> str:
    """Write what the page of a version shows: score, interference, what each gate says, and the parents."""
    verdict = "passed" if has_passed(verdicts) else "**refused**"
    against = f"compared with version {over}" if over is not None else "the first release: floor and canary decide"
    loss = (
        "" if measured.language_loss_change is None else f", masked-LM loss {measured.language_loss_change:+.4f} nats"
    )
    rows = [
        f"| {v.gate} | {'passed' if v.passed else 'failed'}{'' if v.decides else ' (does not decide)'} | {v.message} |"
        for v in verdicts
    ]
    parts = [
        f"| {p.subject} | {shown_weight(p.weight)} | `{p.run_id}` | `{p.key[:16]}` |"
        for p in candidate.composition.parts
    ]
    return "\n".join(
        [
            f"**{candidate.slot}**: {candidate.told_score(measured.score)}, overlap {measured.overlap:.4f}, "
            f"sign conflict {measured.sign_conflict:.4f}{loss}. Gates: {verdict} ({against}).",
            "",
            "| gate | verdict | numbers |",
            "|---|---|---|",
            *rows,
            "",
            f"Base `{candidate.composition.base.id}`, rule `{candidate.composition.rule}`, "
            f"composition `{candidate.composition.key[:16]}`, scored in run `{candidate.cell.run_id}`.",
            "",
            "| SFT | weight | run | key |",
            "|---|---|---|---|",
            *parts,
            "",
        ]
    )


def _scored_now(workspace: Workspace, composition: Composition) -> Outcomes:
    target = workspace.project.target_tasks[composition.target_task]
    pieces = target_objective(workspace, target).examples(labelled_rows(target, target.test[composition.language]))
    parts = load_parts(composition, open_registry(workspace))
    return target_scorer(workspace, target).outcomes(pieces, parts)


def _champion_outcomes(workspace: Workspace, candidate: Candidate, over: int) -> Outcomes:
    """Give the champion's outcomes on the candidate's test set: as recorded if that is the one it was scored on."""
    champion = open_registry(workspace).version(candidate.slot, over)
    stored = None
    if champion.tags.get(TEST) == candidate.test:
        stored = stored_outcomes(workspace, champion.tags.get(CELL_RUN, ""), int(champion.tags.get(SEED, "0")))
    return stored if stored is not None else _scored_now(workspace, champion.composition)


def _measured_now(workspace: Workspace, candidate: Candidate) -> dict[str, float]:
    """Measure the interference of this very composition: the cell measured that of another seed."""
    parts = load_parts(candidate.composition, open_registry(workspace))
    if len(parts) == 1:
        return {}
    language, target_sft = parts
    met = interference(language[0], target_sft[0]).metrics(details=False)
    target = workspace.project.target_tasks[candidate.slot.target_task]
    held_out = workspace.tracker.download(candidate.composition.parts[0].run_id, HELD_OUT)
    text = np.load(held_out, allow_pickle=False)
    if len(text):
        scorer = target_scorer(workspace, target)
        met["functional.language_loss_change"] = scorer.language_loss_change(text, [language], [target_sft])
    return met


def _unvalidated(workspace: Workspace, candidate: Candidate) -> tuple[str, ...]:
    """Name the products behind a candidate whose runs have no validation on record."""
    known = {record.run_id: record for record in workspace.tracker.records()}
    runs = {candidate.cell.subject: candidate.cell.run_id}
    runs |= {part.subject: part.run_id for part in candidate.composition.parts}
    missing = []
    for subject, run_id in runs.items():
        metrics: Any = known[run_id].metrics if run_id in known else {}
        if not any(name.startswith("validation.") for name in metrics):
            missing.append(subject)
    return tuple(missing)


def _slot_tags(slot: Slot) -> dict[str, str]:
    return {"ltsft.language": slot.language, "ltsft.target_task": slot.target_task}


def hash_of(*parts: str) -> str:
    """Hash some texts: the name of a lock, the key of a record."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
