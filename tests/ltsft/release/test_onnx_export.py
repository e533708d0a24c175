"""ONNX: the same logits as PyTorch, in batches of any shape, and nothing is exported when they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ltsft.base import load_base
from ltsft.errors import CompositionError
from ltsft.release import onnx_export
from ltsft.release.onnx_export import ONNX_FILE, export_onnx


def test_the_exported_model_gives_the_logits_of_the_composed_one_in_any_shape(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base))
    model = base.token_classifier(("A", "B", "C"), seed=1)
    with torch.no_grad():
        model.base_model.get_input_embeddings().weight.mul_(3)

    difference = export_onnx(model, base.tokenizer, tmp_path / "onnx")

    assert difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / ONNX_FILE), providers=["CPUExecutionProvider"])
    for shape in ((1, 3), (5, 7), (2, 30)):
        ids = torch.randint(0, 100, shape)
        mask = torch.ones(shape, dtype=torch.int64)
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).logits.numpy()
        given = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        np.testing.assert_allclose(given, wanted, atol=1e-4)
    assert {f.name for f in (tmp_path / "onnx").iterdir()} >= {ONNX_FILE, "config.json", "tokenizer.json"}
    with pytest.raises(CompositionError, match="exists; export to a new or an empty folder"):
        export_onnx(model, base.tokenizer, tmp_path / "onnx")


def test_a_model_that_gives_other_logits_is_not_exported(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(tiny_base))
    model = base.token_classifier(("A", "B"), seed=1)
    monkeypatch.setattr(onnx_export, "_TOLERANCE", 0.0)
    with pytest.raises(CompositionError, match="the ONNX model gives other outputs than PyTorch"):
        export_onnx(model, base.tokenizer, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
