"""Heads of every kind taken elsewhere: the Auto classes give the composed model's outputs, and so does ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from ltsft.base import Base
from ltsft.composition.compose import composed, export_composition
from ltsft.composition.fitting import Part
from ltsft.errors import CompositionError
from ltsft.objectives.biaffine import load_parser
from ltsft.objectives.registry import OBJECTIVES
from ltsft.release.onnx_export import ONNX_FILE, export_onnx
from ltsft.release.release import Composition, load_parts

IDS = torch.tensor([[2, 9, 17, 30, 3], [2, 8, 3, 0, 0]])
MASK = (IDS > 0).long()
STANDARD = {
    "ner": (AutoModelForTokenClassification, ["logits"]),
    "mood": (AutoModelForSequenceClassification, ["logits"]),
    "nli": (AutoModelForSequenceClassification, ["logits"]),
    "qa": (AutoModelForQuestionAnswering, ["start_logits", "end_logits"]),
}


def made_ready(base: Base, full_shelf: Any, name: str) -> tuple[Composition, Any, list[Part]]:
    """A composition, a model with its head, and its parts."""
    composition = next(r.composition for s, r in full_shelf.released.items() if s == ("aa", name))
    model = OBJECTIVES[composition.objective].new_model(base, composition.labels, seed=0).eval()
    return composition, model, load_parts(composition, full_shelf)


@pytest.mark.parametrize("name", STANDARD)
def test_an_exported_folder_gives_the_outputs_of_the_composition_by_the_auto_class_of_its_head(
    base: Base, full_shelf: Any, tmp_path: Path, name: str
) -> None:
    composition, model, parts = made_ready(base, full_shelf, name)
    auto, outputs = STANDARD[name]

    folder = export_composition(model, base.tokenizer, parts, tmp_path / "out", base=base.ref)

    loaded, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad(), composed(model, parts, base=base.ref):
        wanted, given = (one.eval()(input_ids=IDS, attention_mask=MASK) for one in (model, loaded))
    for output in outputs:
        assert torch.equal(given[output], wanted[output])
    if composition.labels:
        assert tuple(loaded.config.id2label.values()) == composition.labels
    assert AutoTokenizer.from_pretrained(folder)("bako dedas").input_ids == base.tokenizer("bako dedas").input_ids


@pytest.mark.parametrize("name", [pytest.param("mood", marks=pytest.mark.slow), "qa"])
def test_onnx_gives_the_outputs_of_the_composition_whatever_its_head(
    base: Base, full_shelf: Any, tmp_path: Path, name: str
) -> None:
    _, model, parts = made_ready(base, full_shelf, name)
    outputs = STANDARD[name][1]
    with torch.no_grad(), composed(model, parts, base=base.ref):
        difference = export_onnx(model, base.tokenizer, tmp_path / "onnx")
        wanted = model(input_ids=IDS, attention_mask=MASK)
    assert difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / ONNX_FILE), providers=["CPUExecutionProvider"])
    found = session.run(outputs, {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()})
    for output, given in zip(outputs, found, strict=True):
        is_there = MASK.bool().numpy() if given.shape == tuple(IDS.shape) else slice(None)
        np.testing.assert_allclose(given[is_there], wanted[output].numpy()[is_there], atol=1e-4)


def test_a_parser_is_exported_for_load_parser_alone_and_not_to_onnx(
    base: Base, full_shelf: Any, tmp_path: Path
) -> None:
    composition, model, parts = made_ready(base, full_shelf, "dp")

    folder = export_composition(model, base.tokenizer, parts, tmp_path / "out", base=base.ref)

    assert "load_parser" in (folder / "README.md").read_text(encoding="utf-8")
    loaded = load_parser(folder)
    assert tuple(loaded.config.id2label.values()) == composition.labels
    places = torch.tensor([[0, 1, 2, 2, -1], [0, 1, -1, -1, -1]])
    with torch.no_grad(), composed(model, parts, base=base.ref):
        wanted, given = (one.arc_scores(one.words(IDS, MASK, places, count=2)) for one in (model, loaded))
        assert torch.equal(given, wanted)
        with pytest.raises(CompositionError, match="cannot be exported to ONNX"):
            export_onnx(model, base.tokenizer, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
