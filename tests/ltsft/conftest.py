"""Tiny models built in memory, SFTs of them made from a seed, and small things to learn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedModel,
    XLMRobertaConfig,
)

from ltsft.sft import SFT, BaseRef, Diff

LABELS = ("NOUN", "VERB", "X")
SIZES = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = {
    "bert": lambda **more: BertConfig(**SIZES, max_position_embeddings=20, **more),
    "xlm-r": lambda **more: XLMRobertaConfig(**SIZES, max_position_embeddings=20, **more),
    "distilbert": lambda **more: DistilBertConfig(
        vocab_size=37, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20, **more
    ),
    "modernbert": lambda **more: ModernBertConfig(
        **SIZES, max_position_embeddings=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, **more
    ),
}


@pytest.fixture(scope="session")
def base_ref() -> BaseRef:
    return BaseRef(id="tiny", revision=None, fingerprint="a" * 64, tokenizer_fingerprint="b" * 64)


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    def build(
        family: str = "bert", *, head: str = "token", labels: tuple[str, ...] = LABELS, tied: bool = False
    ) -> PreTrainedModel:
        torch.manual_seed(0)
        if head == "masked_lm":
            # As in training: output embeddings are a copy, untied from the input's.
            return AutoModelForMaskedLM.from_config(CONFIGS[family](tie_word_embeddings=tied))
        names = dict(enumerate(labels))
        config = CONFIGS[family](id2label=names, label2id={label: place for place, label in names.items()})
        return AutoModelForTokenClassification.from_config(config)

    return build


@pytest.fixture(scope="session")
def make_sft(base_ref: BaseRef) -> Callable[..., SFT]:
    def make(
        model: PreTrainedModel, *, seed: int = 0, density: float = 0.2, kind: str = "language", head: bool = False
    ) -> SFT:
        generator = torch.Generator().manual_seed(seed)
        diffs = {}
        for name, parameter in model.base_model.named_parameters():
            if "norm" in name.lower():
                continue
            support = torch.nonzero(torch.rand(parameter.numel(), generator=generator) < density).flatten().int()
            values = torch.randn(len(support), generator=generator) * 0.1
            diffs[name] = Diff(indices=support, values=values, shape=tuple(parameter.shape))
        inside = {id(parameter) for parameter in model.base_model.parameters()}
        outside = {name: value for name, value in model.named_parameters() if id(value) not in inside}
        whole = {name: torch.randn(value.shape, generator=generator) for name, value in outside.items()}
        return SFT(
            kind=kind,  # type: ignore[arg-type]
            subject="fo" if kind == "language" else "pos",
            base=base_ref,
            diffs=diffs,
            head=whole if head else {},
            labels=tuple(model.config.id2label.values()) if head and kind == "task" else (),
            maskable=sum(diff.size for diff in diffs.values()),
            source_languages=("en",) if kind == "task" else (),
            details={"seed": seed, "recipe": {"density": density, "phases": ["full", "sparse"]}},
        )

    return make


@pytest.fixture(scope="session")
def bits() -> Callable[[PreTrainedModel], dict[str, bytes]]:
    """Every weight of a model as bytes."""

    def read(model: PreTrainedModel) -> dict[str, bytes]:
        return {
            name: value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for name, value in model.state_dict().items()
        }

    return read


@pytest.fixture(scope="session")
def learning() -> ModuleType:
    """The module `learning.py` beside this file: a small language and a small tagging task."""
    spec = importlib.util.spec_from_file_location("learning", Path(__file__).with_name("learning.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
