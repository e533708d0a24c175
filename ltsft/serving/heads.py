"""Many heads over one encoder: a model for each task SFT whose encoder's weights are those of the resident base."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from ltsft.errors import CompositionError
from ltsft.serving.answers import Reader
from ltsft.sft import SFT

__all__ = ["with_head"]


def with_head(resident: PreTrainedModel, sft: SFT, reader: Reader) -> PreTrainedModel:
    """Make a model with the head of a task SFT that shares the encoder of another one.

    Nothing is copied: the encoder's weights are the resident's, so that what is composed there is composed here. A
    pooler, which a sequence classifier of BERT has within its encoder, belongs to the head.

    Args:
        resident: a model without a pooler; its encoder is shared.
        sft: a task SFT.
        reader: of the SFT's objective.

    Raises:
        CompositionError: the head does not fit.
    """
    config = copy.deepcopy(resident.config)
    if sft.labels:
        config.id2label = dict(enumerate(sft.labels))
        config.label2id = {label: i for i, label in enumerate(sft.labels)}
    with torch.device("meta"):
        shell = reader.build_shell(config)
    _share_encoder(resident.base_model, shell)
    shell.eval()
    _set_head(shell, sft)
    return shell


def _share_encoder(encoder: nn.Module, shell: PreTrainedModel) -> None:
    pooler = getattr(shell.base_model, "pooler", None)
    if isinstance(pooler, nn.Module):
        encoder = copy.copy(encoder)  # the same modules, and a pooler of its own
        encoder.__dict__ = {name: value for name, value in vars(encoder).items() if name != "pooler"}
        encoder._modules = {**encoder._modules, "pooler": pooler}
    wanted = {name for name, _ in shell.base_model.named_parameters()}
    known = {name for name, _ in encoder.named_parameters()}
    if wanted != known:
        raise CompositionError(
            f"the encoder of {type(shell).__name__} is another one than that of a token classifier: it differs in "
            f"{min(wanted ^ known)}; such a base cannot be served for this target task"
        )
    setattr(shell, shell.base_model_prefix, encoder)


def _set_head(shell: PreTrainedModel, sft: SFT) -> None:
    missing = {name for name, value in shell.named_parameters() if value.is_meta}
    for name in sorted(missing ^ sft.head.keys()):
        raise CompositionError(f"{sft.title}: head {name} is {'missing' if name in missing else 'not in the model'}")
    for name, value in sft.head.items():
        owner, _, last = name.rpartition(".")
        module: nn.Module = shell.get_submodule(owner)
        wanted = getattr(module, last)
        if wanted.shape != value.shape:
            raise CompositionError(
                f"{sft.title}: head {name}: shape {list(value.shape)}, but the model's is {list(wanted.shape)}"
            )
        setattr(module, last, nn.Parameter(value.float(), requires_grad=False))
