"""What the library of MAD-X's authors computes, for weights that a formula gives.

Its transformers is another one than ours, so this runs by itself and the numbers are kept beside it:

    pip install adapters==1.3.0 transformers==4.57.6 torch && python tests/support/adapters_reference.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")
SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
MORE = {"max_position_embeddings": 16, "tie_word_embeddings": False}
IDS = [[2, 3, 4, 5, 6, 7], [8, 9, 10, 3, 2, 5]]
WIDTHS = {"language": 4, "task": 2}
HEADS = {
    "bert": ["cls.predictions.transform.dense", "", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"],
    "xlm-r": ["lm_head.dense", "", "lm_head.layer_norm", "lm_head.decoder"],
}
"""Names of transformers for the parts of the library's head for masked language modelling."""


def weight(name: str, shape: torch.Size) -> Tensor:
    """Give the weight of this name: it depends on nothing else."""
    values = 0.4 * torch.sin(1.7 * torch.arange(shape.numel(), dtype=torch.float64) + sum(name.encode()))
    is_scale = name.lower().endswith(("layernorm.weight", "layer_norm.weight"))
    return (values.reshape(shape) + float(is_scale)).float()


def our_name(name: str, family: str) -> str:
    """Give our name for a parameter of the library."""
    if name.startswith("heads.speech."):
        number, _, kind = name.removeprefix("heads.speech.").partition(".")
        return f"{HEADS[family][int(number)]}.{kind}"
    for adapter in WIDTHS:
        if f".invertible_adapters.{adapter}." in name:
            return f"{adapter}.invertible.{name.partition(f'.{adapter}.')[2].replace('F', 'f').replace('G', 'g')}"
        if f".adapters.{adapter}." in name:
            layer = name.partition(".layer.")[2].partition(".")[0]
            rest = name.partition(f".adapters.{adapter}.")[2]
            return f"{adapter}.layers.{layer}.{rest.replace('adapter_down.0', 'down').replace('adapter_up', 'up')}"
    return name


@torch.no_grad()
def computed(family: str, config: Any, model_class: Any) -> dict[str, list[float]]:
    """Give the hidden states with the language adapter, and with both stacked, and the masked LM's logits."""
    from adapters.composition import Stack

    model = model_class(config(**SIZES, **MORE)).eval()
    for adapter, kind in (("language", "seq_bn_inv"), ("task", "seq_bn")):
        model.add_adapter(adapter, config=f"{kind}[reduction_factor={SIZES['hidden_size'] // WIDTHS[adapter]}]")
    model.add_masked_lm_head("speech")
    for name, parameter in model.named_parameters():
        parameter.copy_(weight(our_name(name, family), parameter.shape))
    found = {}
    for label, setup in (("language", "language"), ("both", Stack("language", "task"))):
        model.set_active_adapters(setup)
        found[label] = model.base_model(input_ids=torch.tensor(IDS)).last_hidden_state
        if label == "language":
            found["logits"] = model(input_ids=torch.tensor(IDS), head="speech").logits
    return {name: [round(value, 5) for value in values.flatten().tolist()] for name, values in found.items()}


if __name__ == "__main__":
    from adapters import BertAdapterModel, XLMRobertaAdapterModel
    from transformers import BertConfig, XLMRobertaConfig

    models = {"bert": (BertConfig, BertAdapterModel), "xlm-r": (XLMRobertaConfig, XLMRobertaAdapterModel)}
    FILE.write_text(json.dumps({name: computed(name, *classes) for name, classes in models.items()}) + "\n")
