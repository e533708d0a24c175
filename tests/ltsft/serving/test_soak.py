"""Requests over eight connections and all languages while releases and rollbacks happen: every answer is whole."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from ltsft.release.release import Release, Slot
from ltsft.serving.answers import Input
from ltsft.serving.engine import Engine
from ltsft.serving.metrics import resident_bytes
from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app

CONNECTIONS = 8
TEXTS = ("bako dedas .", "gilik", "dedas bako gilik bako dedas . bako", "bako gilik .")
REFRESH_SECONDS = 0.2


@pytest.fixture
def address(make_service: Callable[..., Service], shelf: Any) -> Iterator[str]:
    """A server on a port of its own."""
    service = make_service(shelf, refresh_seconds=REFRESH_SECONDS)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


class Releases:
    """Releases another composition of a random (language, target task) each time, and remembers when."""

    def __init__(self, shelf: Any, stock: Any) -> None:
        self._shelf, self._compositions = shelf, stock[0]
        self._random = random.Random(0)
        self.composition_of: dict[tuple[Slot, int], str] = {}
        self.history: dict[Slot, list[tuple[float, int]]] = {}
        for slot, release in shelf.released.items():
            self._note(slot, release, at=0.0)

    def _note(self, slot: Slot, release: Release, *, at: float) -> None:
        self.composition_of[slot, release.version] = release.composition.key
        self.history.setdefault(slot, []).append((at, release.version))

    def move(self) -> None:
        slot = self._random.choice(sorted(self._shelf.released))
        version = self.history[slot][-1][1] + 1
        number = 1 + version % 2
        release = Release(version, self._compositions[slot.language, slot.target_task, number])
        self._note(slot, release, at=time.monotonic())
        self._shelf.released[slot] = release

    def live_between(self, slot: Slot, start: float, end: float) -> tuple[int, int]:
        """The oldest and the newest version that may have answered."""
        before = [version for at, version in self.history[slot] if at <= start]
        until = [version for at, version in self.history[slot] if at <= end]
        return before[-1], until[-1]


def expected_answers(engine: Engine, shelf: Any, stock: Any) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """Labels and scores of each text under each composition, from an engine that nothing else uses."""
    found = {}
    for (_, _, number), composition in stock[0].items():
        admitted = engine.admit(Release(number, composition), shelf)
        for text in TEXTS:
            prepared = admitted.reader.prepare(Input(text=text))
            words = admitted.reader.read(prepared, engine.run(admitted, prepared.pieces)).words
            found[composition.key, text] = [(str(w.label), float(w.score or 0)) for w in words]
    return found


def soak(
    address: str, releases: Releases, expected: Any, *, requests: int, release_seconds: float, lag: float
) -> tuple[list[str], list[float]]:
    """Send requests; give what was wrong, and the memory over time."""
    wrong: list[str] = []
    memory: list[float] = []
    done = threading.Event()
    slots = sorted(releases.history)

    def keep_releasing() -> None:
        while not done.wait(release_seconds):
            releases.move()
            memory.append(resident_bytes())

    def ask(number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=address, timeout=60) as client:
            for turn in range(requests // CONNECTIONS):
                if turn % 20 == 7:
                    status = client.post("/v1/pos/zz", json={"text": "bako"}).status_code
                    if status != 404:
                        wrong.append(f"an unknown language gave {status}")
                    continue
                slot, text = rng.choice(slots), rng.choice(TEXTS)
                start = time.monotonic()
                response = client.post(f"/v1/{slot.target_task}/{slot.language}", json={"text": text})
                problem = check(slot, text, response, start)
                if problem:
                    wrong.append(problem)

    def check(slot: Slot, text: str, response: httpx.Response, start: float) -> str:
        if response.status_code != 200:
            return f"{slot}: {response.status_code} {response.text}"
        body = response.json()
        oldest, newest = releases.live_between(slot, start - lag, time.monotonic())
        if not oldest <= body["version"] <= newest:
            return f"{slot}: version {body['version']} answered, {oldest} to {newest} were live"
        if body["composition"] != releases.composition_of[slot, body["version"]]:
            return f"{slot}: version {body['version']} with another composition"
        words = [(w["label"], w["score"]) for w in body["results"][0]["words"]]
        wanted = expected[body["composition"], text]
        if any(a[0] != b[0] or abs(a[1] - b[1]) > 1e-4 for a, b in zip(words, wanted, strict=True)):
            return f"{slot}: {words} instead of {wanted}"
        return ""

    releaser = threading.Thread(target=keep_releasing)
    askers = [threading.Thread(target=ask, args=(number,)) for number in range(CONNECTIONS)]
    for thread in (releaser, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    done.set()
    releaser.join()
    return wrong, memory


@pytest.mark.parametrize(
    ("requests", "release_seconds"),
    [pytest.param(400, 0.1, id="short"), pytest.param(10_000, 1.0, id="long", marks=pytest.mark.soak)],
)
def test_no_answer_is_of_a_wrong_version_or_half_a_composition_while_releases_happen(
    address: str, shelf: Any, stock: Any, engine: Engine, requests: int, release_seconds: float
) -> None:
    expected = expected_answers(engine, shelf, stock)
    releases = Releases(shelf, stock)

    wrong, memory = soak(
        address, releases, expected, requests=requests, release_seconds=release_seconds, lag=REFRESH_SECONDS + 10.0
    )

    assert not wrong, wrong[:5]
    assert sum(len(moves) - 1 for moves in releases.history.values()) >= 5
    with httpx.Client(base_url=address) as client:
        page = client.get("/metrics").text
    switches = next(line for line in page.splitlines() if line.startswith("ltsft_switch_seconds_count"))
    assert float(switches.split()[1]) > 20
    third = len(memory) // 3
    assert max(memory[-third:]) < 1.05 * max(memory[:third]) + 20e6, "memory grew"
