"""The frame of the benchmarks: figures and goals, timing in turn, memory of a process of its own."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.figures import Report, main
from benchmarks.timing import interleaved, peak_memory


def small_report(quick: bool = False) -> Report:
    report = Report("sample", "quick" if quick else "whole")
    report.at_most("seconds", 1.5, "s", 1.5, plain=48.0, limit=0.4)
    report.at_least("speed", 9.0, "x", 10.0)
    report.within("cost", 1.019, "x", 1.0, 0.02)
    report.note("part", 123456.0, "s")
    return report


def test_a_goal_is_met_on_its_boundary_and_missed_beyond_it() -> None:
    met = {name: figure["met"] for name, figure in small_report().as_json()["figures"].items()}
    assert met == {"seconds": True, "speed": False, "cost": True}


def test_a_value_that_is_no_number_meets_no_goal() -> None:
    report = Report("sample", "x")
    report.at_most("a", math.nan, "s", 1.0)
    report.within("b", math.nan, "s", 1.0, 0.1)
    assert not any(figure.is_met for figure in report.figures)


def test_the_last_line_is_the_json_and_the_table_shows_notes_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["sample", "--quick"])
    main("sample", small_report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sample: quick; ")
    assert any(line.startswith("part") and "123,456" in line for line in lines)
    assert json.loads(lines[-1]) == {
        "benchmark": "sample",
        "figures": {
            "seconds": {"value": 1.5, "unit": "s", "goal": 1.5, "met": True},
            "speed": {"value": 9.0, "unit": "x", "goal": 10.0, "met": False},
            "cost": {"value": 1.019, "unit": "x", "goal": 1.0, "met": True},
        },
    }


def test_procedures_are_timed_in_turn_and_every_other_round_backwards() -> None:
    order: list[str] = []
    timings = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert "".join(order) == "baabba"
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]
    assert timings.ratio("a", "a") == 1.0


def allocate(size: int) -> object:
    ready = bytearray(size)
    return lambda: len(bytearray(b"x" * size)) + len(ready)


def test_peak_memory_counts_what_the_work_takes_and_not_what_was_prepared() -> None:
    peak = peak_memory(allocate, 60_000_000)  # type: ignore[arg-type]
    assert peak.result == 120_000_000
    assert peak.before_bytes > 60_000_000
    assert 60_000_000 < peak.extra_bytes < 190_000_000
