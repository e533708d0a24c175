"""Run a composed model beside its base, a stack of bottleneck adapters, and LoRA that is not merged."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.bases import BASE_REF, build_sft, build_token_classifier, size_of
from benchmarks.figures import Report, main
from benchmarks.timing import interleaved
from ltsft.composition import Resident


def run(*, quick: bool = False) -> Report:
    """Time one forward pass of each; a batch of 8 sentences of 128 sub-words."""
    size = size_of(quick)
    batch, length = (4, 32) if quick else (8, 128)
    base = build_token_classifier(size)
    composed = copy.deepcopy(base)
    language = build_sft(base, "language", "fo", size.language_support, seed=0)
    task = build_sft(base, "task", "pos", size.task_support, seed=9)
    Resident(composed, base=BASE_REF).switch([(language, 1.0), (task, 1.0)])
    adapted = _with_adapters(copy.deepcopy(base), size.hidden)
    lora = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=8, target_modules=["query", "key", "value", "dense"], task_type="TOKEN_CLS")
    ).eval()
    ids = torch.randint(5, size.vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
    models = {"base": base, "composed": composed, "adapters": adapted, "lora": lora}
    timings = interleaved({n: lambda m=m: _forward(m, ids) for n, m in models.items()}, rounds=20 if quick else 9)  # type: ignore[misc]
    report = Report("inference", f"{size.name}, {batch} x {length} sub-words")
    report.within("composed_over_base", timings.ratio("composed", "base"), "x", 1.0, 0.02, limit=1.0)
    report.note("adapters (a language and a task stack) over base", timings.ratio("adapters", "base"), "x")
    report.note("LoRA (rank 8, not merged) over base", timings.ratio("lora", "base"), "x")
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    report.note("parameters of the composed model over the base's", parameters["composed"] / parameters["base"], "x")
    report.note("parameters with adapters over the base's", parameters["adapters"] / parameters["base"], "x")
    report.note("base, a forward pass", timings.median("base"), "s")
    return report


class _Adapter(nn.Module):
    """A bottleneck adapter after a layer (Houlsby et al. 2019, Pfeiffer et al. 2020): down, ReLU, up, residual."""

    def __init__(self, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, bottleneck)
        self.up = nn.Linear(bottleneck, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.up(torch.relu(self.down(hidden)))


class _Adapted(nn.Module):
    """The output of a layer with a language adapter and a task adapter stacked on it, as in MAD-X."""

    def __init__(self, output: nn.Module, hidden: int) -> None:
        super().__init__()
        self.output = output
        self.adapters = nn.Sequential(_Adapter(hidden, hidden // 2), _Adapter(hidden, hidden // 16))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.adapters(self.output(*inputs))


def _with_adapters(model: PreTrainedModel, hidden: int) -> PreTrainedModel:
    encoder: Any = model.base_model.encoder
    for layer in encoder.layer:
        layer.output = _Adapted(layer.output, hidden)
    return model.eval()


@torch.no_grad()
def _forward(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


if __name__ == "__main__":
    main("inference", run)
