"""What is released is picked up while requests are answered; what is bad is refused, and the old version stays."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ltsft.errors import ReleaseError, ServiceError
from ltsft.release.release import Slot, UnreadableRelease
from ltsft.serving.answers import Input, OtherFormError
from ltsft.serving.bundle import Bundle
from ltsft.serving.engine import Engine
from ltsft.serving.results import EntitiesResult
from ltsft.serving.service import Service, UnknownReleaseError

Make = Callable[..., Service]
POS = Slot("aa", "pos")


def ask(service: Service, *asked: tuple[Slot, str]) -> list[Any]:
    return asyncio.run(service.answer([(slot, Input(text=text)) for slot, text in asked]))


def version(service: Service, slot: Slot = POS) -> int:
    return int(ask(service, (slot, "bako dedas ."))[0].release.version)


def test_a_release_and_a_rollback_answer_from_the_next_request_on(make_service: Make, shelf: Any, stock: Any) -> None:
    service = make_service(shelf)
    first = ask(service, (POS, "bako dedas ."))[0]
    assert first.release.version == 1

    shelf.put(stock[0]["aa", "pos", 2], 2)
    assert version(service) == 1
    service.refresh()
    second = ask(service, (POS, "bako dedas ."))[0]
    assert second.release.version == 2
    assert [w.score for w in second.result.words] != [w.score for w in first.result.words]
    assert version(service, Slot("bb", "pos")) == 1

    shelf.put(stock[0]["aa", "pos", 1], 1)
    service.refresh()
    assert ask(service, (POS, "bako dedas ."))[0] == first


def test_the_watcher_sees_a_release_without_being_told(make_service: Make, shelf: Any, stock: Any) -> None:
    service = make_service(shelf, refresh_seconds=0.05)
    shelf.put(stock[0]["aa", "pos", 2], 2)
    end = time.monotonic() + 20
    while version(service) != 2:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_bad_artifact_is_refused_and_the_version_before_stays(
    make_service: Make, shelf: Any, stock: Any, tmp_path: Path
) -> None:
    service = make_service(shelf)
    composition = stock[0]["aa", "pos", 2]
    part = composition.parts[1]
    bad = tmp_path / "bad"
    shutil.copytree(shelf.folders[part.sha256], bad)
    (bad / "sft.safetensors").write_bytes(b"not tensors")
    good, shelf.folders[part.sha256] = shelf.folders[part.sha256], bad
    shelf.put(composition, 2)

    service.refresh()

    assert version(service) == 1
    assert service.refused[POS][0] == 2
    assert "bytes" in service.refused[POS][1]
    assert b"ltsft_releases_refused 1.0" in service.metrics.page()
    shelf.folders[part.sha256] = good
    service.refresh()
    assert version(service) == 2
    assert not service.refused


def test_a_release_whose_record_is_damaged_is_refused_and_hides_no_other(
    make_service: Make, shelf: Any, tmp_path: Path
) -> None:
    bundle = Bundle(tmp_path / "bundle")
    make_service(shelf, bundle=bundle)
    others = len(shelf.released) - 1
    shelf.released[POS] = UnreadableRelease(2, "its tag is gone")

    service = make_service(shelf)

    assert service.is_ready()
    assert len(service.live) == others
    assert service.refused == {POS: (2, "its tag is gone")}

    for slot in shelf.released:
        shelf.released[slot] = UnreadableRelease(2, "its run was deleted")
    assert not make_service(shelf).is_ready(), "with nothing to serve"
    started = make_service(shelf, bundle=bundle)
    assert started.is_ready()
    assert len(started.live) == others + 1, "from the bundle"


def test_what_is_withdrawn_is_unknown_and_the_message_names_what_there_is(make_service: Make, shelf: Any) -> None:
    service = make_service(shelf)
    del shelf.released[POS]
    service.refresh()
    with pytest.raises(UnknownReleaseError, match="no release of pos for this language; there are bb, cc"):
        ask(service, (POS, "bako"))
    with pytest.raises(UnknownReleaseError, match="no such target task; there are coarse, pos"):
        ask(service, (Slot("aa", "ner"), "bako"))


def test_a_server_starts_from_its_bundle_while_the_registry_is_away(
    make_service: Make, shelf: Any, stock: Any, tmp_path: Path
) -> None:
    bundle = Bundle(tmp_path / "bundle")
    expected = ask(make_service(shelf, bundle=bundle), (POS, "bako dedas ."), (Slot("cc", "coarse"), "gilik"))
    shelf.is_away = True

    service = make_service(shelf, bundle=bundle)

    assert ask(service, (POS, "bako dedas ."), (Slot("cc", "coarse"), "gilik")) == expected
    with pytest.raises(ServiceError):
        service.refresh()
    assert version(service) == 1
    shelf.is_away = False
    shelf.put(stock[0]["aa", "pos", 2], 2)
    service.refresh()
    assert version(service) == 2
    assert bundle.live()[POS].version == 2
    shelf.is_away = True
    with pytest.raises(ServiceError, match="is away"):
        make_service(shelf, bundle=Bundle(tmp_path / "nowhere"))


def test_a_bundle_keeps_what_is_live_alone_and_refuses_what_was_changed(shelf: Any, stock: Any, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path / "bundle")
    bundle.write(shelf.released.values(), shelf)
    assert len(list((bundle.folder / "sfts").iterdir())) == 5
    bundle.write([shelf.released[POS]], shelf)
    assert {f.name for f in (bundle.folder / "sfts").iterdir()} == {
        part.sha256 for part in shelf.released[POS].composition.parts
    }
    index = bundle.folder / "releases.json"
    index.write_text(index.read_text().replace('"weight": 1.0', '"weight": 2.0'))
    with pytest.raises(ReleaseError, match="was damaged or changed"):
        bundle.live()
    index.write_text("[")
    with pytest.raises(ReleaseError, match="is damaged"):
        bundle.live()


def test_texts_of_one_request_are_answered_by_one_release(make_service: Make, shelf: Any, stock: Any) -> None:
    service = make_service(shelf, batch_texts=1, max_pieces=200)
    texts = [(POS, "bako dedas gilik . " * 8)] * 12

    async def release_in_between() -> list[Any]:
        answering = asyncio.create_task(service.answer([(slot, Input(text=text)) for slot, text in texts]))
        await asyncio.sleep(0.01)
        shelf.put(stock[0]["aa", "pos", 2], 2)
        await asyncio.to_thread(service.refresh)
        return await answering

    answers = asyncio.run(release_in_between())
    assert len({answer.release.version for answer in answers}) == 1
    assert len({tuple(w.score for w in answer.result.words) for answer in answers}) == 1
    assert version(service) == 2


def test_requests_that_wait_while_a_release_of_another_objective_comes_are_made_ready_anew(
    make_service: Make, shelf: Any, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(shelf)
    by_name = {c.target_task: c for c in kinds[0] if c.language == "aa"}
    shelf.folders |= kinds[1]
    run, begun, gate = Engine.run, threading.Event(), threading.Event()

    def held(self: Engine, *arguments: Any) -> Any:
        begun.set()
        assert gate.wait(20)
        return run(self, *arguments)

    monkeypatch.setattr(Engine, "run", held)
    other = Slot("aa", "coarse")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, service, (Slot("bb", "pos"), "bako"))
        assert begun.wait(20)
        entities, form = (pool.submit(ask, service, (slot, "bako dedas .")) for slot in (POS, other))
        while service.waiting < 2:
            time.sleep(0.01)
        shelf.put(by_name["ner"].model_copy(update={"target_task": "pos"}), 2)
        shelf.put(by_name["qa"].model_copy(update={"target_task": "coarse"}), 2)
        service.refresh()
        gate.set()
        assert first.result(20)[0].release.version == 1
        [answer] = entities.result(20)
        assert (answer.release.version, type(answer.result)) == (2, EntitiesResult)
        with pytest.raises(OtherFormError, match="takes question and context, got text"):
            form.result(20)
