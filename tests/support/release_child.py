"""A process of its own that promotes and rolls back in forks of itself, and has them killed where it is told.

    release_child.py PROJECT kills|races    writes one JSON line for each thing that it saw

Prefect is left out: the steps are those of the flows, called as plain functions. The canary is a stand-in.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from tasks.quiet import quiet_services

quiet_services()

import flows.promote as promotion  # noqa: E402
from ltsft.project.project import ProjectRef  # noqa: E402
from ltsft.release.release import Composition, Slot  # noqa: E402
from ltsft.release.verdicts import Canary  # noqa: E402
from tasks.releases import promotion as releases  # noqa: E402
from tasks.releases import registry as registering  # noqa: E402
from tasks.releases import rollbacks  # noqa: E402
from tasks.tracking.runs import RunHandle  # noqa: E402
from tasks.tracking.tracker import Tracker  # noqa: E402
from tasks.workspace.workspace import Workspace, open_workspace  # noqa: E402

SLOT = Slot("bb", "pos")
PROMOTION_POINTS = [
    (promotion, "open_promotion"),
    (releases, "log_model"),
    (registering.Registry, "_create_model"),
    (registering.Registry, "register"),
    (promotion, "put_forward"),
    (promotion, "measure"),
    (registering.Registry, "describe"),
    (promotion, "judge_candidate"),
    (RunHandle, "set_tags"),
    (registering.Registry, "set_alias"),
    (promotion, "move_champion"),
]
ROLLBACK_POINTS = [
    (Tracker, "open_run"),
    (registering.Registry, "tag"),
    (registering.Registry, "set_alias"),
]


def as_plain_functions() -> None:
    for name in ("put_forward", "measure", "judge_candidate", "move_champion"):
        setattr(promotion, name, getattr(promotion, name).fn)
    promotion.get_run_logger = lambda: logging.getLogger("child")  # type: ignore[assignment]
    promotion.ask_canary = lambda *_: Canary(True, 0.1, "a stand-in")  # type: ignore[assignment]


def killed_after(owner: Any, name: str, *, on: Callable[..., bool] = lambda *_: True) -> None:
    """Have this process killed as soon as a step has done its work."""
    step = getattr(owner, name)

    def last(*arguments: Any, **named: Any) -> Any:
        step(*arguments, **named)
        if on(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, last)


def weighted(weight: float) -> None:
    """Compose with another weight of the task SFT: another composition of the same parts."""
    compose = promotion.compose_recipe

    def other(workspace: Workspace, slot: Slot) -> Composition:
        made = compose(workspace, slot)
        parts = (made.parts[0], made.parts[1].model_copy(update={"weight": weight}))
        return made.model_copy(update={"parts": parts})

    promotion.compose_recipe = other


def promote(file: str, weight: float = 1.0) -> str:
    weighted(weight)
    workspace = open_workspace(ProjectRef(file=file))
    return promotion.promote_slot(workspace, SLOT, reason="test", who="tester", again=False)


def roll_back(file: str) -> list[int | None]:
    return list(rollbacks.roll_back.fn(open_workspace(ProjectRef(file=file)), SLOT, to=None, reason="bad", who="me"))


def state(file: str) -> dict[str, Any]:
    registry = registering.open_registry(open_workspace(ProjectRef(file=file)))
    versions = registry.versions(SLOT)
    return {
        "champion": registry.champion(SLOT),
        "versions": {v.number: v.composition.parts[1].weight for v in versions},
        "events": [[e.kind, e.before, e.after, e.is_finished] for e in registry.events(SLOT)],
    }


def forget(file: str) -> None:
    """Delete the registered model and the records of its releases."""
    workspace = open_workspace(ProjectRef(file=file))
    tracker, name = workspace.tracker, registering.open_registry(workspace).name_of(SLOT)
    tracker.client.delete_registered_model(name)
    for run in tracker.search(f"tags.`ltsft.subject` = 'release {SLOT}'"):
        tracker.client.delete_run(run.info.run_id)


def begin(action: Callable[[], Any]) -> tuple[int, int]:
    """Do something in a fork; gives its process id and where its answer can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        answer = json.dumps(action())
        os.write(writing, answer.encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(child: int, reading: int) -> tuple[int, Any]:
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(answer) if answer else None


def fork(action: Callable[[], Any]) -> tuple[int, Any]:
    return end(*begin(action))


def warm_up(file: str) -> None:
    """Import and load once what every fork needs; no connection is opened, for forks must not share one."""
    import mlflow.pyfunc  # noqa: F401
    from mlflow.models import ModelSignature  # noqa: F401

    base = ProjectRef(file=file).load().base
    from tasks.workspace.workspace import _load_base

    assert _load_base(base.id, base.revision).ref
    gc.freeze()  # a flow collects garbage after each product


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def kills(file: str) -> None:
    def stopped(owner: Any, name: str, action: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            is_champion = lambda *a: name != "set_alias" or registering.CHAMPION in a  # noqa: E731
            killed_after(owner, name, on=is_champion)
            return action()

        return run

    for owner, name in PROMOTION_POINTS:
        fork(lambda: promote(file, 0.9))
        code, _ = fork(stopped(owner, name, lambda: promote(file)))
        between = fork(lambda: state(file))[1]
        again = fork(lambda: promote(file))
        say(step=name, code=code, between=between, again=again, after=fork(lambda: state(file))[1])
        fork(lambda: forget(file))
    for owner, name in ROLLBACK_POINTS:
        fork(lambda: promote(file, 0.8))
        fork(lambda: promote(file, 0.9))
        fork(lambda: promote(file))
        code, _ = fork(stopped(owner, name, lambda: roll_back(file)))
        between = fork(lambda: state(file))[1]
        again = fork(lambda: roll_back(file))
        say(step=f"rollback {name}", code=code, between=between, again=again, after=fork(lambda: state(file))[1])
        fork(lambda: forget(file))


def races(file: str) -> None:
    same = [begin(lambda: promote(file)) for _ in range(2)]
    answers = [end(*one) for one in same]
    say(race="same", answers=answers, after=fork(lambda: state(file))[1])
    others = [begin(lambda weight=weight: promote(file, weight)) for weight in (0.9, 0.95)]
    answers = [end(*one) for one in others]
    say(race="different", answers=answers, after=fork(lambda: state(file))[1])


if __name__ == "__main__":
    as_plain_functions()
    warm_up(sys.argv[1])
    {"kills": kills, "races": races}[sys.argv[2]](sys.argv[1])
