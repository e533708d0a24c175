"""Eight connections ask a server while real releases and rollbacks go through a real MLflow registry."""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

import flows.promote as promotion
from ltsft.errors import ReleaseError
from ltsft.project.project import ProjectRef
from ltsft.release.release import Slot
from ltsft.release.verdicts import Canary
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits
from ltsft.serving.metrics import Metrics, resident_bytes
from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app
from tasks.releases import rollbacks
from tasks.releases.serving import RegistrySource
from tasks.workspace.workspace import Workspace, open_workspace

SLOTS = [Slot(code, "pos") for code in ("aa", "bb", "cc")]
CONNECTIONS, REFRESH_SECONDS, LAG_SECONDS = 8, 0.3, 20.0
NOTED_SECONDS = 60.0
"""A move is noted once it was made; a server may have seen it by then. Beside other work a move takes many seconds."""


@dataclass(frozen=True)
class Move:
    """What became live, and when: not before `begin`, at `end` at the latest, both by the monotonic clock."""

    version: int
    begin: float
    end: float


class Releasing:
    """Promotes and rolls back as the flows do, without Prefect; the canary is not asked."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("put_forward", "measure", "judge_candidate", "move_champion"):
            monkeypatch.setattr(promotion, name, getattr(promotion, name).fn)
        monkeypatch.setattr(promotion, "get_run_logger", lambda: logging.getLogger("soak"))
        monkeypatch.setattr(promotion, "ask_canary", lambda *_: Canary(True, 0.1, "a stand-in"))
        compose = promotion.compose_recipe
        self._weights = (1.0 - number / 1000 for number in itertools.count())

        def other(workspace: Workspace, slot: Slot) -> Any:
            made = compose(workspace, slot)
            parts = (made.parts[0], made.parts[1].model_copy(update={"weight": next(self._weights)}))
            return made.model_copy(update={"parts": parts})

        monkeypatch.setattr(promotion, "compose_recipe", other)
        self.workspace = open_workspace(ProjectRef(file=str(file)))
        self._random = random.Random(0)
        self.history: dict[Slot, list[Move]] = {slot: [] for slot in SLOTS}
        self.keys: dict[tuple[Slot, int], str] = {}
        self.rollbacks = 0
        for slot in SLOTS:
            self.promote(slot)

    def promote(self, slot: Slot) -> None:
        begin = time.monotonic()
        promotion.promote_slot(self.workspace, slot, reason="soak", who="tester", again=False)
        self._note(slot, begin)

    def move(self) -> None:
        slot = self._random.choice(SLOTS)
        if len(self.history[slot]) > 1 and self.history[slot][-1].version > 1 and self._random.random() < 0.4:
            begin = time.monotonic()
            try:
                rollbacks.roll_back.fn(self.workspace, slot, to=None, reason="soak", who="tester")
            except ReleaseError:  # there is nothing before it
                return
            self.rollbacks += 1
            self._note(slot, begin)
        else:
            self.promote(slot)

    def _note(self, slot: Slot, begin: float) -> None:
        registry = promotion.open_registry(self.workspace)
        version = registry.champion(slot)
        assert version is not None
        self.keys[slot, version] = registry.version(slot, version).composition.key
        self.history[slot].append(Move(version, begin, time.monotonic()))

    def live_between(self, slot: Slot, start: float, end: float) -> set[int]:
        """The versions that were live at some time between, as far as the moves say."""
        history = list(self.history[slot])
        gone = [after.end for after in history[1:]] + [math.inf]
        return {move.version for move, until in zip(history, gone, strict=True) if move.begin <= end and until >= start}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("requests", "least"),
    [
        pytest.param(1_600, 2, id="short", marks=pytest.mark.slow),
        pytest.param(10_000, 20, id="long", marks=pytest.mark.soak),
    ],
)
def test_releases_through_a_real_registry_never_give_a_wrong_version(
    changeable_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, requests: int, least: int
) -> None:
    releasing = Releasing(changeable_project, monkeypatch)
    limits = Limits(refresh_seconds=REFRESH_SECONDS)
    engine = Engine(releasing.workspace.base, limits=limits)
    source = RegistrySource(ProjectRef(file=str(changeable_project)))
    service = Service(engine, source, limits=limits, metrics=Metrics())
    refresh = service.refresh
    looks: list[float] = []

    def timed_refresh() -> None:
        begin = time.monotonic()
        refresh()
        looks.append(time.monotonic() - begin)

    monkeypatch.setattr(service, "refresh", timed_refresh)
    service.start()
    memory: list[float] = []
    with listening(create_app(service)) as address, moving(releasing, memory):
        begin = time.monotonic()
        wrong = asked_from_everywhere(address, releasing, requests)
        seconds = time.monotonic() - begin
    service.close()
    moves = sum(map(len, releasing.history.values())) - len(SLOTS)
    with capsys.disabled():
        print(
            f"\n{requests} requests in {seconds:.0f} s, {moves} moves of which {releasing.rollbacks} rollbacks, "
            f"{len(wrong)} wrong, {len(looks)} looks at the registry of at most {max(looks):.1f} s, "
            f"memory from {memory[0] / 1e6:.0f} to {memory[-1] / 1e6:.0f} MB"
        )
    assert not wrong, wrong[:5]
    assert moves >= least
    third = max(1, len(memory) // 3)
    assert max(memory[-third:]) < 1.1 * max(memory[:third]) + 50e6, "memory grew"


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Run an application on a port of its own; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@contextmanager
def moving(releasing: Releasing, memory: list[float]) -> Iterator[None]:
    """Make a move a second, and note the memory."""
    done, broken = threading.Event(), []

    def keep_releasing() -> None:
        try:
            while not done.wait(1.0):
                releasing.move()
                memory.append(resident_bytes())
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=keep_releasing)
    thread.start()
    yield
    done.set()
    thread.join()
    assert not broken, broken


def asked_from_everywhere(address: str, releasing: Releasing, requests: int) -> list[str]:
    """Ask over several connections; give what was wrong."""
    wrong: list[str] = []

    def ask(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=address, timeout=60) as client:
            for _ in range(requests // CONNECTIONS):
                slot, start = rng.choice(SLOTS), time.monotonic()
                response = client.post(f"/v1/pos/{slot.language}", json={"text": "bako dedas ."})
                problem = checked(releasing, slot, response, start)
                if problem:
                    wrong.append(problem)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def checked(releasing: Releasing, slot: Slot, response: httpx.Response, start: float) -> str:
    """Say what is wrong with an answer; nothing if it is of a version that was live when it was asked."""
    if response.status_code != 200:
        return f"{slot}: {response.status_code} {response.text}"
    body, end = response.json(), time.monotonic()
    while body["version"] not in (allowed := releasing.live_between(slot, start - LAG_SECONDS, end)):
        if time.monotonic() > end + NOTED_SECONDS:
            return f"{slot}: version {body['version']} answered, {sorted(allowed)} were live: {releasing.history[slot]}"
        time.sleep(0.05)
    if body["composition"] != releasing.keys[slot, body["version"]]:
        return f"{slot}: version {body['version']} with another composition"
    return ""
