from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from ltsft.config.gates import Gates, LabelledGate, TextGate

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "validation.md"


@pytest.mark.parametrize("gate", [TextGate, LabelledGate])
def test_every_threshold_is_documented_with_its_default_and_reason(gate: type[BaseModel]) -> None:
    page = DOCUMENTATION.read_text(encoding="utf-8")
    for name, info in gate.model_fields.items():
        assert f"| `{name}` | {info.default} | {info.description} |" in page


def test_thresholds_left_out_of_the_project_file_keep_their_defaults() -> None:
    gates = Gates.model_validate({"text": {"min_lines": 7}})
    assert gates.text == TextGate(min_lines=7)
    assert gates.labelled == LabelledGate()


@pytest.mark.parametrize(
    "values", [{"min_script_share": 1.5}, {"max_duplicate_share": -0.1}, {"min_lines": -1}, {"min_scirpt_share": 0.5}]
)
def test_a_threshold_out_of_range_or_unknown_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TextGate.model_validate(values)
