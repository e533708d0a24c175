"""Promotions that are killed and promotions that race: the alias points to one whole version, and a rerun ends well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration
CHILD = Path(__file__).parents[1] / "support" / "release_child.py"


def seen(project: Path, what: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(project), what], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr[-9000:])  # pytest shows it with a failure
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_promotion_or_rollback_killed_after_any_step_leaves_one_whole_version_and_a_rerun_ends_well(
    changeable_project: Path,
) -> None:
    found = seen(changeable_project, "kills")

    assert len(found) == 14
    for kill in found:
        assert kill["code"] == -9, kill
        between, after = kill["between"], kill["after"]
        assert str(between["champion"]) in between["versions"], kill
        code, answer = kill["again"]
        assert code == 0, kill
        assert sorted(after["versions"]) == sorted(str(n) for n in range(1, len(after["versions"]) + 1))
        assert len(set(after["versions"].values())) == len(after["versions"]), "a composition was registered twice"
        if kill["step"].startswith("rollback"):
            assert between["champion"] in (2, 3), kill
            assert answer == [3, 2], kill
            assert after["champion"] == 2, kill
        else:
            assert between["champion"] in (1, 2), kill
            assert after["champion"] == 2, kill
            assert after["versions"] == {"1": 0.9, "2": 1.0}
        assert after["events"][-1][2:] == [after["champion"], True], kill
        moves = [event[:3] for event in after["events"]]
        assert len(moves) == len({tuple(move) for move in moves}), f"a move is on record twice: {kill}"
    live_after_the_commit = [kill["between"]["champion"] for kill in found if kill["step"] == "set_alias"]
    assert live_after_the_commit == [2]


def test_of_two_promotions_at_once_each_composition_is_released_once_and_compared_with_the_one_before(
    changeable_project: Path,
) -> None:
    same, different = seen(changeable_project, "races")

    assert [code for code, _ in same["answers"]] == [0, 0]
    assert same["after"]["versions"] == {"1": 1.0}
    assert sorted(answer for _, answer in same["answers"])[1] == "version 1 is live already"
    assert same["after"]["events"] == [["promotion", None, 1, True]]

    assert [code for code, _ in different["answers"]] == [0, 0]
    after = different["after"]
    assert set(after["versions"].values()) == {1.0, 0.9, 0.95}
    first, second = (event for event in after["events"][1:])
    assert first[:2] == ["promotion", 1]
    assert second[:2] == ["promotion", first[2]], "the second was not compared with what the first made live"
    assert after["champion"] == second[2]
