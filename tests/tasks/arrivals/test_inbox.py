"""The inbox: what is noticed, once, and how it becomes part of the project."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ltsft.project.project import ProjectRef, load_project
from tasks.arrivals.inbox import inbox_overrides, mark_announced, notice, read_register
from tasks.storage import Bucket

pytestmark = pytest.mark.integration


def put(bucket: Bucket, **files: str) -> None:
    for name, content in files.items():
        bucket.put(f"inbox/{name.replace('__', '/').replace('_dot_', '.')}", content.encode())


def test_a_language_is_noticed_until_it_was_announced_and_again_when_its_text_changes(bucket: Bucket) -> None:
    put(bucket, fo__a_dot_txt="Hetta er ein setningur.\n")

    first = notice(bucket, known=(), quiet_seconds=0)
    again = notice(bucket, known=(), quiet_seconds=0)
    mark_announced(bucket, first[0])

    assert [a.code for a in first] == ["fo"]
    assert again == first, "killed before the event was sent, the next watcher sends it"
    assert again[0].event_id("p") == first[0].event_id("p")
    assert notice(bucket, known=(), quiet_seconds=0) == []
    put(bucket, fo__a_dot_txt="Hetta er ein annar setningur.\n")
    changed = notice(bucket, known=(), quiet_seconds=0)
    assert [a.code for a in changed] == ["fo"]
    assert changed[0].event_id("p") != first[0].event_id("p")


def test_an_upload_that_is_not_finished_and_what_is_no_text_are_left(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    put(bucket, fo__a_dot_txt="x\n", yo__notes_dot_pdf="x", known__a_dot_txt="x\n", READMEmd="x")
    bucket.put("inbox/b.a.d/x.txt", b"x\n")
    caplog.set_level(logging.WARNING, logger="tasks.arrivals.inbox")

    assert notice(bucket, known=["known"], quiet_seconds=600) == []
    assert notice(bucket, known=["known"], quiet_seconds=0)[0].code == "fo"
    assert set(read_register(bucket)[0]) == {"fo"}
    assert "inbox/b.a.d is left: allowed are 1 to 40 letters and digits of ASCII" in caplog.text
    assert "yo/notes.pdf is left: allowed are *.txt" in caplog.text
    assert "inbox/known is left: known stands in the project file" in caplog.text


def test_a_language_that_cannot_be_read_stops_neither_the_others_nor_the_flows_of_the_project(
    bucket: Bucket, tiny_project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(bucket, fo__a_dot_txt="Hetta.\n", xx__a_dot_txt="x\n", xx__language_dot_json='{"script": "Nope"}')
    bucket.put("inbox/gz/a.txt.gz", b"\x1f\x8b" + b"no gzip at all")
    caplog.set_level(logging.WARNING, logger="tasks.arrivals.inbox")

    assert [arrival.code for arrival in notice(bucket, known=(), quiet_seconds=0)] == ["fo"]
    assert "inbox/gz is left: " in caplog.text
    assert "is no whole gzip file" in caplog.text
    assert "inbox/xx is left: script: " in caplog.text
    overrides = inbox_overrides(load_project(tiny_project), bucket)
    assert "fo" in ProjectRef(file=str(tiny_project), overrides=overrides).load().languages


def test_what_was_noticed_is_a_language_of_the_project_with_the_script_of_its_text(
    bucket: Bucket, tiny_project: Path
) -> None:
    put(bucket, ru__a_dot_txt="Это предложение.\n", ru__pos_dot_test_dot_conllu="1\ta\n", aa__a_dot_txt="x\n")
    notice(bucket, known=["aa"], quiet_seconds=0)
    project = load_project(tiny_project)

    overrides = inbox_overrides(project, bucket)
    with_inbox = ProjectRef(file=str(tiny_project), overrides=overrides).load()

    assert with_inbox.languages["ru"].script == "Cyrl"
    assert [str(s) for s in with_inbox.languages["ru"].text] == [f"text:{bucket.location}/inbox/ru/a.txt"]
    tests = with_inbox.target_tasks["pos"].test["ru"]
    assert [str(s) for s in tests] == [f"conllu:{bucket.location}/inbox/ru/pos.test.conllu"]
    assert with_inbox.languages["aa"] == project.languages["aa"], "the project file wins"
