"""Every benchmark runs in its small size and says what it found in one form."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from benchmarks import NAMES

# The rest prove the result, at any size: what is measured must be right, whatever it takes.
RIGHT = {
    "composition": {"wrong_weights"},
    "plan": {"stale_products"},
    "selection": {"wrong_choices"},
    "serving": {"wrong_logits"},
    "storage": {"wrong_entries", "bits_an_entry_bf16"},
}


QUICK = {"gpu", "matrix", "plan"}
"""What the others measure is tested for itself: selection, packing, composing, steps, the engine and the queue."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NAMES])
def test_a_benchmark_says_what_it_found(name: str) -> None:
    report = importlib.import_module(f"benchmarks.{name}").run(quick=True)
    found = json.loads(json.dumps(report.as_json()))
    assert found["benchmark"] == name
    assert found["figures"] or (name == "gpu" and not torch.cuda.is_available())
    for figure in found["figures"].values():
        assert set(figure) == {"value", "unit", "goal", "met"}
        assert isinstance(figure["met"], bool)
        assert isinstance(figure["value"], int | float)
    for figure in RIGHT.get(name, set()):
        assert found["figures"][figure]["met"], (figure, found)
    assert all(figure.name in report.table() for figure in report.figures)
