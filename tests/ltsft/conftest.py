"""Tiny models built in memory, SFTs of them made from a seed, and small things to learn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from ltsft.sft.sft import SFT, BaseRef, Diff

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
def unigram_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny, untrained BERT whose tokenizer is a unigram model: words can be cut in several ways."""
    folder = tmp_path_factory.mktemp("unigram")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = {"\u2581": -3.0, **{letter: -4.0 - i / 10 for i, letter in enumerate("bdklmnrsteioaABKv.,?")}}
    pairs = [first + second for first in "bdklmnrst" for second in "ei"]
    pieces |= {f"\u2581{pair}": -4.0 for pair in pairs} | dict.fromkeys(pairs, -6.0)
    vocabulary = [(token, 0.0) for token in special] + list(pieces.items())
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"cls": "<s>", "bos": "<s>", "pad": "<pad>", "sep": "</s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **{f"{name}_token": token for name, token in names.items()}
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(
        BertConfig(vocab_size=len(fast), max_position_embeddings=64, pad_token_id=1, **sizes)
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def learning() -> ModuleType:
    """The module `tests/support/learning.py`: a small language and a small tagging task."""
    return _support("learning")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module `tests/support/adapters_reference.py`, which made the numbers of the `.json` there."""
    return _support("adapters_reference")


def _support(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "support" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
