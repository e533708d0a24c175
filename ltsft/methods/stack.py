"""Bottleneck adapters in a model: what they compute (MAD-X, Pfeiffer et al. 2020), and where they stand.

They are put in by hooks on the modules of the encoder, whose weights and names stay as they are. The architectures are
those whose layers end as BERT's do: BERT, RoBERTa, XLM-R, ELECTRA, RoFormer and their like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ltsft.errors import BaseModelError, CompositionError
from ltsft.sft import SFT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Bottlenecks", "Stack", "bottlenecks_of", "layers_of", "stack_of"]

_SPREAD = 0.02
"""Standard deviation of new weights: that of BERT."""


class Bottlenecks(nn.Module):
    """The adapter of a language or of a target task.

    Args:
        layers: of the encoder; there is a bottleneck for each.
        hidden: size of the hidden states.
        width: of the bottlenecks.
        invertible: size of the embeddings if there is an invertible adapter, else 0; even.
    """

    def __init__(self, layers: int, hidden: int, width: int, invertible: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Bottleneck(hidden, width) for _ in range(layers))
        self.invertible = _Coupling(invertible) if invertible else None
        for name, p in self.named_parameters():
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.normal_(p, std=_SPREAD)


class _Bottleneck(nn.Module):
    """Down, ReLU, up, plus what it goes beside."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.up = nn.Linear(width, hidden)

    def forward(self, normed: Tensor, beside: Tensor) -> Tensor:
        """Give (batch, length, hidden) of two of this shape."""
        found: Tensor = self.up(functional.relu(self.down(normed))) + beside
        return found


class _Coupling(nn.Module):
    """Two additive couplings (NICE, Dinh et al. 2015): each half is moved by a function of the other one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        half, quarter = size // 2, max(1, size // 4)
        self.f = nn.Sequential(nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, half))
        self.g = nn.Sequential(nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, half))

    def forward(self, states: Tensor) -> Tensor:
        """Give (..., size) of the same shape."""
        first, second = states.chunk(2, -1)
        first = first + self.f(second)
        return torch.cat([first, second + self.g(first)], -1)

    def inverse(self, states: Tensor) -> Tensor:
        """Give what `forward` was given."""
        first, second = states.chunk(2, -1)
        second = second - self.g(first)
        return torch.cat([first - self.f(second), second], -1)


class Stack:
    """The adapters that stand in one model: those that were composed, and over them the one that trains.

    In each layer an adapter takes the feed-forward's output, or what the adapter below made of it, adds what its
    bottleneck makes of that after the layer's norm, and hands it on; the norm of the layer comes last. Invertible ones
    follow each other after the embeddings, and their inverses go back before the output embeddings. This is MAD-X as
    the authors' library has it, number for number; in the paper's equation 2 a task adapter adds to the feed-forward's
    output, not to what the language adapter gave.

    Args:
        model: the model; the stack keeps no hold on it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._composed: list[Bottlenecks] = []
        self._trained: list[Bottlenecks] = []
        self._layers = [layer.output for layer in layers_of(model)]
        self._embeddings = model.base_model.get_submodule("embeddings")
        self._output: nn.Module | None = model.get_output_embeddings()
        self._handles: list[RemovableHandle] = []
        self._fed_forward: list[Tensor | None] = [None] * len(self._layers)

    @property
    def composed(self) -> tuple[Bottlenecks, ...]:
        """What is composed, from below."""
        return tuple(self._composed)

    def compose(self, adapters: Sequence[Bottlenecks]) -> None:
        """Put these in place of what is composed; what trains stays over them. With none the model is as it was."""
        self._composed = list(adapters)
        self._hook()

    def train_on_top(self, adapter: Bottlenecks) -> None:
        """Put an adapter that trains over what is composed."""
        self._trained = [adapter]
        self._hook()

    def _hook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not (self._composed or self._trained):
            return
        for number, output in enumerate(self._layers):
            self._handles.append(output.dropout.register_forward_hook(partial(self._keep, number)))
            self._handles.append(output.register_forward_hook(partial(self._adapt, number)))
        if any(adapter.invertible is not None for adapter in (*self._composed, *self._trained)):
            self._handles.append(self._embeddings.register_forward_hook(self._invertible))
            if self._output is not None:
                self._handles.append(self._output.register_forward_pre_hook(self._inverse))

    def _keep(self, number: int, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self._fed_forward[number] = output

    def _adapt(self, number: int, module: Any, arguments: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
        state, self._fed_forward[number] = self._fed_forward[number], None
        assert state is not None  # noqa: S101 - the dropout has just run
        beside, normed = arguments[1], output
        for adapter in (*self._composed, *self._trained):
            bottleneck: Any = adapter.layers[number]
            state = bottleneck(normed, state)
            normed = module.LayerNorm(state + beside)
        return normed

    def _invertible(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        for adapter in (*self._composed, *self._trained):
            output = adapter.invertible(output) if adapter.invertible is not None else output
        return output

    def _inverse(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        for adapter in reversed((*self._composed, *self._trained)):
            states = adapter.invertible.inverse(states) if adapter.invertible is not None else states
        return (states, *arguments[1:])


_STACKS: WeakKeyDictionary[PreTrainedModel, Stack] = WeakKeyDictionary()


def stack_of(model: PreTrainedModel) -> Stack:
    """Give the stack of a model, of which there is one.

    Raises:
        BaseModelError: adapters do not fit its architecture.
    """
    if model not in _STACKS:
        _STACKS[model] = Stack(model)
    return _STACKS[model]


def layers_of(model: PreTrainedModel) -> list[Any]:
    """Give the layers of a model, in order.

    Raises:
        BaseModelError: they do not end as BERT's do.
    """
    found = [
        layer
        for layer in model.base_model.modules()
        if all(hasattr(layer, part) for part in ("attention", "intermediate", "output"))
        and all(isinstance(getattr(layer.output, part, None), nn.Module) for part in ("dense", "dropout", "LayerNorm"))
    ]
    if not found or not isinstance(getattr(model.base_model, "embeddings", None), nn.Module):
        raise BaseModelError(
            f"mad_x needs an encoder whose layers end as BERT's do (dense, dropout and LayerNorm in `output`), and "
            f"{type(model).__name__} has none such; lora takes any encoder of linear layers"
        )
    return found


def bottlenecks_of(sft: SFT, model: PreTrainedModel) -> Bottlenecks:
    """Make the modules of a stored adapter, of the model's dtype and on its device; they do not train.

    Raises:
        CompositionError: they do not fit the model.
    """
    adapter, hidden = sft.adapter, int(model.config.hidden_size)
    down = adapter.get("layers.0.down.weight", torch.empty(0))
    half = adapter.get("invertible.f.2.bias", torch.empty(0)).numel()
    made = Bottlenecks(len(layers_of(model)), hidden, max(1, len(down)), 2 * half)
    _refuse_other_shapes(sft, adapter, dict(made.named_parameters()))
    made.load_state_dict(dict(adapter))
    parameter = next(model.base_model.parameters())
    return made.to(device=parameter.device, dtype=parameter.dtype).requires_grad_(False)


def _refuse_other_shapes(sft: SFT, adapter: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(adapter.keys() | wanted.keys()):
        found, expected = ([*t[name].shape] if name in t else None for t in (adapter, wanted))
        if found != expected:
            raise CompositionError(
                f"{sft.title}: adapter {name}: shape {found or 'none'}, but the model's is {expected or 'none'}; is "
                "this a model of the SFT's base?"
            )
