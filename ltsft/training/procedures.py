"""How SFTs are learnt: a procedure for methods that learn diffs, and one for those that learn modules of their own.

Diffs: full phase, selection, rewind, sparse phase, as far as the method has them (Ansell et al. 2022, section 3).
Modules: one phase, and nothing to select or to rewind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ltsft.base import Roles
from ltsft.errors import ConfigError
from ltsft.methods import AdapterMethod, SupportMethod
from ltsft.sft import SFT, Diff
from ltsft.training.phase import PhaseResult, write_tensors
from ltsft.training.prepare import TrainingData
from ltsft.training.processes import is_first_of_node, wait_for_all
from ltsft.training.stages import Progress, Stages, derive_seed

__all__ = ["Learnt", "learn_diffs", "learn_modules"]


@dataclass(frozen=True)
class Learnt:
    """What a procedure gives.

    Attributes:
        rounds: how the phases of each round ended.
        diffs: by parameter; empty for modules.
        adapter: the tensors of modules, by name; empty for diffs.
    """

    rounds: list[list[PhaseResult]]
    diffs: dict[str, Diff]
    adapter: dict[str, Tensor]


@dataclass(frozen=True)
class _Chosen:
    """The support in one parameter.

    Attributes:
        indices: strictly increasing flat indices, int32, (k,).
        origin: what the weights there are in the starting point, (k,).
    """

    indices: Tensor
    origin: Tensor

    @classmethod
    def nothing(cls) -> _Chosen:
        return cls(torch.empty(0, dtype=torch.int32), torch.empty(0))


def learn_modules(stages: Stages, method: AdapterMethod, roles: Roles) -> Learnt:
    """Learn modules that the method puts beside the encoder's weights.

    Args:
        stages: what runs phases.
        method: makes the modules.
        roles: what each parameter of the model is for, without the modules.
    """
    training = stages.training
    seed = derive_seed(training.seed, "adapter")
    adapter = method.attach(stages.model, roles, kind=training.kind, recipe=stages.recipe, seed=seed)
    rounds = []
    for number, data in enumerate(training.rounds):
        results = stages.run_head(data, iteration=number)
        began = {name: p.detach().clone() for name, p in adapter.items()}
        results.append(stages.run("full", data, iteration=number, maskable=adapter, pull_to=began))
        rounds.append(results)
    return Learnt(rounds, {}, {name: p.detach().cpu().clone() for name, p in adapter.items()})


def learn_diffs(stages: Stages, method: SupportMethod, roles: Roles) -> Learnt:
    """Learn the differences of K weights to the starting point, each round its share of K.

    Args:
        stages: what runs phases.
        method: selects the weights, and says which phases there are.
        roles: what each parameter of the model is for.

    Raises:
        ConfigError: there are fewer than K weights to select from.
    """
    training, maskable = stages.training, roles.maskable
    k = method.size(roles, stages.recipe)
    barred = _supports(training.apart_from) if training.recipe.disjoint else {}
    free = roles.size - sum(indices.numel() for name, indices in barred.items() if name in maskable)
    if k > free:
        raise ConfigError(
            f"{training.title}: disjoint leaves {free} of {roles.size} weights to select from, but K is {k}; lower "
            "the density here or that of the language SFTs"
        )
    chosen = {name: _Chosen.nothing() for name in maskable}
    rounds, count = [], len(training.rounds)
    for number, data in enumerate(training.rounds):
        quota = k * (number + 1) // count - k * number // count
        of_diffs = _Round(stages, method, maskable, number, data)
        chosen, results = of_diffs.run(taken=chosen, barred=barred, quota=quota)
        rounds.append(results)
    diffs = {
        name: Diff(
            indices=chosen[name].indices,
            values=_at(p, chosen[name].indices) - chosen[name].origin,
            shape=tuple(p.shape),
        )
        for name, p in maskable.items()
    }
    return Learnt(rounds, diffs, {})


@dataclass(frozen=True)
class _Round:
    """One round of full phase, selection, rewind and sparse phase, as far as the method has them."""

    stages: Stages
    method: SupportMethod
    maskable: Mapping[str, nn.Parameter]
    number: int
    data: TrainingData

    def run(
        self, *, taken: Mapping[str, _Chosen], barred: Mapping[str, Tensor], quota: int
    ) -> tuple[dict[str, _Chosen], list[PhaseResult]]:
        """Train, select `quota` more weights, rewind to where this round began and train the selected ones.

        The starting point waits in a file while the full phase runs: of it, memory only ever holds what is used.

        Args:
            taken: what earlier rounds have selected.
            barred: what may not be selected.
            quota: how many weights to select.

        Returns:
            What is selected now, `taken` included, and how the phases ended.
        """
        maskable, phases = self.maskable, self.method.phases
        results = self.stages.run_head(self.data, iteration=self.number)
        began = {name: _at(p, taken[name].indices) for name, p in maskable.items()}
        head_began = {name: p.detach().clone() for name, p in self.stages.head.items()}
        origin = _TensorFile(self._write_starting_point(taken))
        if "full" in phases:
            results.append(self._phase("full", support=None, pull_to=origin))
        support = self._select(origin, taken=taken, barred=barred, quota=quota)
        chosen = {name: _Chosen(support[name], _at(origin[name], support[name])) for name in maskable}
        if "sparse" in phases:
            objective = self.stages.training.objective
            if "full" in phases:
                objective.keep_first_stage(self.stages.model, self.stages.recipe.precision)
            with torch.no_grad():
                for name, p in maskable.items():
                    p.copy_(origin[name])
                    p.view(-1)[taken[name].indices.long().to(p.device)] = began[name].to(p.device)
                for name, p in self.stages.head.items():
                    p.copy_(head_began[name])
            pull_to = {name: c.origin for name, c in chosen.items()}
            results.append(self._phase("sparse", support=support, pull_to=pull_to))
            objective.drop_first_stage()
        origin.file.unlink(missing_ok=True)
        return chosen, results

    def _phase(self, name: str, *, support: Mapping[str, Tensor] | None, pull_to: Mapping[str, Tensor]) -> PhaseResult:
        return self.stages.run(
            name, self.data, iteration=self.number, maskable=self.maskable, support=support, pull_to=pull_to
        )

    def _write_starting_point(self, taken: Mapping[str, _Chosen]) -> Path:
        """Write the maskable weights as they are, those that earlier rounds trained as they were before."""
        file = self.stages.folder / f"{self.number}-start.safetensors"
        if not file.is_file() and is_first_of_node():
            weights = {}
            for name, p in self.maskable.items():
                weights[name] = p.detach().cpu()
                if taken[name].indices.numel():
                    weights[name] = weights[name].clone()
                    weights[name].view(-1)[taken[name].indices.long()] = taken[name].origin
            self.stages.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(weights, file)
        wait_for_all()
        return file

    def _select(
        self, origin: Mapping[str, Tensor], *, taken: Mapping[str, _Chosen], barred: Mapping[str, Tensor], quota: int
    ) -> dict[str, Tensor]:
        """Give the support of the sparse phase: what was taken and `quota` more; flat indices, int32."""
        file = self.stages.folder / f"{self.number}-support.safetensors"
        if not file.is_file():
            self.stages.report(Progress("selection", 0, 0, iteration=self.number))
            earlier = {name: chosen.indices for name, chosen in taken.items()}
            new = self.method.select(
                self.maskable,
                origin,
                quota,
                taken=_united(earlier, barred),
                recipe=self.stages.recipe,
                seed=derive_seed(self.stages.training.seed, self.number, "selection"),
            )
            support = {name: torch.cat([earlier[name], new[name]]).sort().values for name in self.maskable}
            wait_for_all()
            if is_first_of_node():
                write_tensors(support, file)
            wait_for_all()
        return load_file(file)


def _supports(sfts: Iterable[SFT]) -> dict[str, Tensor]:
    """Give the weights that some of the SFTs change: strictly increasing flat indices, int32, by parameter."""
    found: dict[str, Tensor] = {}
    for sft in sfts:
        found = _united({name: diff.indices for name, diff in sft.diffs.items()}, found)
    return found


def _united(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put supports together, parameter by parameter."""
    return {name: torch.unique(torch.cat([s[name] for s in (a, b) if name in s])) for name in {**a, **b}}


def _at(weights: Tensor, indices: Tensor) -> Tensor:
    """Give some of the weights, by flat index, on the CPU."""
    return weights.detach().reshape(-1).index_select(0, indices.to(weights.device)).cpu()


class _TensorFile(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with safe_open(file, framework="pt") as opened:
            self._names = list(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
