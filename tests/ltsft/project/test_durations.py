"""How long a plan will take: by the sizes of trainings, and honest where nothing was measured."""

from __future__ import annotations

from typing import Any

import pytest

from ltsft.project.durations import Measured, expected_time
from ltsft.project.plan import Product


def parts_of(steps: int | None, *, base: str = "a", length: int = 128) -> dict[str, Any]:
    phase = {"max_steps": steps}
    recipe = {"full": phase, "sparse": phase, "head": None, "batch_size": 8, "max_length": length}
    return {"kind": "language", "base": {"encoder": base}, "recipe": recipe}


def product(parts: dict[str, Any], kind: str = "language") -> Product:
    return Product(kind, f"{kind} fo", "0" * 64, parts, (), language="fo")


def test_a_training_takes_as_long_as_its_steps_and_lengths_at_the_median_rate() -> None:
    measured = [Measured("language", parts_of(100), seconds) for seconds in (9.0, 10.0, 400.0)]

    assert expected_time([product(parts_of(100))], measured).seconds == pytest.approx(10)
    assert expected_time([product(parts_of(400))], measured).seconds == pytest.approx(40)
    found = expected_time([product(parts_of(400, length=64))] * 9, measured)
    assert (found.seconds, found.known, found.unknown) == (pytest.approx(180), 9, {})
    assert str(found) == "about 3 min, one after the other, as earlier ones took"


def test_steps_that_depend_on_the_data_take_the_median_time() -> None:
    measured = [Measured("language", parts_of(None), seconds) for seconds in (7000.0, 7200.0, 9000.0)]

    assert str(expected_time([product(parts_of(None))], measured)).startswith("about 2.0 h, ")


def test_what_was_never_made_here_is_not_guessed() -> None:
    measured = [Measured("language", parts_of(100), 30.0)]
    others = [product(parts_of(100, base="b")), product({"kind": "cell"}, "cell")]

    assert str(expected_time(others, measured)) == "not known yet: nothing of this kind has been made here"
    assert str(expected_time([product(parts_of(100)), *others], measured)) == (
        "about 30 s, one after the other, as earlier ones took; and 1 of the kind language, 1 of the kind cell, "
        "not known yet: nothing of this kind has been made here"
    )
    assert str(expected_time([], measured)) == ""
