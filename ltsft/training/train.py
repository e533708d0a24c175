"""Learning an SFT: full phase, selection, rewind, sparse phase (Ansell et al. 2022, section 3).

Each phase runs on Hugging Face's Trainer; which example comes when, and how it is masked, is a pure function of the
seed and the position, so a training that is killed and started again ends with the same SFT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltsft.base import Base, Roles, parameter_roles
from ltsft.composition import composed
from ltsft.config import LT_SFT, Recipe
from ltsft.config import Phase as PhaseSettings
from ltsft.errors import ConfigError, TrainingError
from ltsft.methods import AdapterMethod, Method, SupportMethod, method_named
from ltsft.objectives import Objective
from ltsft.precision import DETAIL, autocast, keep_threads
from ltsft.sft import SFT, Diff, Kind
from ltsft.training.consistent import drop_first_stage, keep_first_stage
from ltsft.training.phase import Phase, PhaseResult, run_phase, write_tensors
from ltsft.training.processes import is_first_of_node, is_first_process, join_processes, wait_for_all
from ltsft.training.settling import settle_numerics


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        stage: "head", "full", "selection" or "sparse".
        step: optimizer steps done in this stage; `steps` in all. Both 0 in selection.
        metrics: what was measured at this step, names as in MLflow; empty most of the time.
        iteration: which round of full and sparse phase this is, from 0.
    """

    stage: str
    step: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    iteration: int = 0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and what chooses the best checkpoint."""

    examples: Sequence[Any]
    held_out: Sequence[Any]


def train_sft(
    base: Base,
    objective: Objective,
    *,
    kind: Kind,
    subject: str,
    recipe: Recipe,
    seed: int,
    method: str = LT_SFT,
    data: TrainingData | Sequence[TrainingData],
    folder: Path,
    applied: Sequence[SFT] = (),
    apart_from: Sequence[SFT] = (),
    source_languages: tuple[str, ...] = (),
    details: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 300.0,
    device: str | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SFT:
    """Learn an SFT.

    Started again on the same folder after a kill, it goes on from the last whole checkpoint and, on CPU, ends with the
    same SFT bit for bit. It keeps the precision and the number of threads that it was begun with. A precision that the
    device would emulate gives way to float32; `details["numerics"]` says what was used (`ltsft.training.settling`).

    Args:
        base: the base.
        objective: what is learnt.
        kind: "language" or "task".
        subject: the language or the target task.
        recipe: density, phases, batches.
        seed: of the head, the order of examples, masking and dropout.
        method: how it is learnt, one of `ltsft.methods.registry`.
        data: what is trained on and what is held out. Several are trained on one after the other, each in a round of
            its own, like the iterations of a recipe: each adds its share of K. The held-out score of each is then
            measured after its round and at the end, in `details["forgetting"]`.
        folder: for checkpoints; the caller removes it after success. Never shared by two trainings.
        applied: SFTs that are part of the starting point (the source language's, for a task SFT); diffs are counted
            from base + these.
        apart_from: SFTs whose supports are not selected from, where the recipe says `disjoint`.
        source_languages: recorded in the SFT.
        details: recorded in the SFT: data fingerprints, parents.
        checkpoint_seconds: time between checkpoints: the most work that a kill can cost.
        device: "cpu" or "cuda"; the accelerator if there is one when None.
        on_progress: called after each step.
        should_stop: asked after each step; once it says yes, a checkpoint is saved and the training ends.

    Returns:
        The SFT, on the CPU.

    Raises:
        TrainingError: nothing to train on, or a loss that is not finite.
        ConfigError: the recipe does not fit the base.
        CompositionError: an applied SFT does not fit the base.
        InterruptedTraining: `should_stop` said so.
    """
    rounds = [data] * recipe.iterations if isinstance(data, TrainingData) else list(data)
    if not all(len(each.examples) for each in rounds):
        raise TrainingError(f"{kind} SFT {subject}: there is nothing to train on")
    device = join_processes(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = objective.build_model(base, seed=seed)
    nn.Module.to(model, device)
    if recipe.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout
    how = method_named(method)
    norm_biases = isinstance(how, SupportMethod) and how.has_norm_biases
    roles = parameter_roles(model, recipe.freeze, has_norm_biases=norm_biases)
    k = how.size(roles, recipe) if isinstance(how, SupportMethod) else 0
    barred = _supports(apart_from) if recipe.disjoint else {}
    free = roles.size - sum(indices.numel() for name, indices in barred.items() if name in roles.maskable)
    if k > free:
        raise ConfigError(
            f"{kind} SFT {subject}: disjoint leaves {free} of {roles.size} weights to select from, but K is {k}; lower "
            "the density here or that of the language SFTs"
        )
    numerics = settle_numerics(folder, recipe.precision, device)
    computed = recipe.model_copy(update={"precision": numerics[-1].precision})
    with (
        keep_threads(numerics[-1].threads),
        composed(model, [(sft, 1.0) for sft in applied], base=base.ref, heads=False),
    ):
        adapter: dict[str, nn.Parameter] = {}
        if isinstance(how, AdapterMethod):
            adapter = how.attach(model, roles, kind=kind, recipe=recipe, seed=derive_seed(seed, "adapter"))
        trained = replace(roles, maskable=adapter) if adapter else roles
        chosen = {name: _Chosen.nothing() for name in trained.maskable}
        history: list[dict[str, Any]] = []
        before: list[float] = []
        for iteration, each in enumerate(rounds):
            quota = k * (iteration + 1) // len(rounds) - k * iteration // len(rounds)
            training = _Iteration(
                how, model, objective, trained, computed, barred, seed, iteration, each, folder, checkpoint_seconds,
                device, on_progress, should_stop,
            )  # fmt: skip
            chosen, results = training.run(chosen, quota)
            history += [
                {"phase": r.name, "iteration": iteration, "steps": r.steps, "best_step": r.step, "best_score": r.score}
                for r in results
            ]
            before.append(results[-1].score)
        forgetting = {}
        if not isinstance(data, TrainingData):
            after = [_held_out_score(model, objective, each, computed, device) for each in rounds]
            forgetting["forgetting"] = [{"before": b, "after": a} for b, a in zip(before, after, strict=True)]
        diffs = {
            name: Diff(
                indices=chosen[name].indices,
                values=_at(p, chosen[name].indices) - chosen[name].origin,
                shape=tuple(p.shape),
            )
            for name, p in ({} if adapter else roles.maskable).items()
        }
        stored = {name: p.detach().cpu().clone() for name, p in adapter.items()}
        head = {name: p.detach().cpu().clone() for name, p in roles.head.items()}
    return SFT(
        kind=kind,
        subject=subject,
        base=base.ref,
        diffs=diffs,
        head=head,
        labels=objective.labels,
        maskable=roles.size,
        source_languages=source_languages,
        method=method,
        adapter=stored,
        details={
            **(details or {}),
            "recipe": how.used(recipe, seed),
            DETAIL: [stretch.model_dump() for stretch in numerics],
            "history": history,
            **forgetting,
        },
    )


def _held_out_score(model: nn.Module, objective: Objective, data: TrainingData, recipe: Recipe, device: str) -> float:
    model.train(False)
    with autocast(recipe.precision, device):
        return objective.evaluate(cast(PreTrainedModel, model), data.held_out).score


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


@dataclass
class _Iteration:
    """One round of full phase, selection, rewind and sparse phase, as far as the method has them."""

    method: Method
    model: nn.Module
    objective: Objective
    roles: Roles
    recipe: Recipe
    barred: Mapping[str, Tensor]
    seed: int
    number: int
    data: TrainingData
    folder: Path
    checkpoint_seconds: float
    device: str
    on_progress: OnProgress | None
    should_stop: Callable[[], bool] | None

    def run(self, taken: dict[str, _Chosen], quota: int) -> tuple[dict[str, _Chosen], list[PhaseResult]]:
        """Train, select `quota` more weights, rewind to where this round began and train the selected ones.

        A head phase comes before the first round and is not rewound: a head that does not fit yet would bend the
        encoder to itself (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features").

        An adapter has its one phase, and nothing to select or to rewind.

        The starting point waits in a file while the full phase runs: of it, memory only ever holds what is used.
        """
        maskable, head = self.roles.maskable, self.roles.head
        results = [self._phase("head", None, {})] if self.recipe.head is not None and self.number == 0 else []
        began = {name: _at(p, taken[name].indices) for name, p in maskable.items()}
        head_began = {name: p.detach().clone() for name, p in head.items()}
        if not isinstance(self.method, SupportMethod):
            began = {name: p.detach().clone() for name, p in maskable.items()}
            return taken, [*results, self._phase("full", None, began)]
        origin = _TensorFile(self._write_starting_point(taken))
        if "full" in self.method.phases:
            results.append(self._phase("full", None, origin))
        support = self._select(self.method, origin, taken, quota)
        chosen = {name: _Chosen(support[name], _at(origin[name], support[name])) for name in maskable}
        if "sparse" in self.method.phases:
            if "full" in self.method.phases:
                keep_first_stage(self.objective, self.model, self.recipe.precision)
            with torch.no_grad():
                for name, p in maskable.items():
                    p.copy_(origin[name])
                    p.view(-1)[taken[name].indices.long().to(p.device)] = began[name].to(p.device)
                for name, p in head.items():
                    p.copy_(head_began[name])
            results.append(self._phase("sparse", support, {name: c.origin for name, c in chosen.items()}))
            drop_first_stage(self.objective)
        origin.file.unlink(missing_ok=True)
        return chosen, results

    def _write_starting_point(self, taken: Mapping[str, _Chosen]) -> Path:
        """Write the maskable weights as they are, those that earlier rounds trained as they were before."""
        file = self.folder / f"{self.number}-start.safetensors"
        if not file.is_file() and is_first_of_node():
            weights = {}
            for name, p in self.roles.maskable.items():
                weights[name] = p.detach().cpu()
                if taken[name].indices.numel():
                    weights[name] = weights[name].clone()
                    weights[name].view(-1)[taken[name].indices.long()] = taken[name].origin
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(weights, file)
        wait_for_all()
        return file

    def _select(
        self, method: SupportMethod, origin: Mapping[str, Tensor], taken: Mapping[str, _Chosen], quota: int
    ) -> dict[str, Tensor]:
        """Give the support of the sparse phase: what was taken and `quota` more; flat indices, int32."""
        file = self.folder / f"{self.number}-support.safetensors"
        maskable = self.roles.maskable
        if not file.is_file():
            self._report("selection")
            earlier = {name: chosen.indices for name, chosen in taken.items()}
            seed = derive_seed(self.seed, self.number, "selection")
            barred = _united(earlier, self.barred)
            new = method.select(maskable, origin, quota, taken=barred, recipe=self.recipe, seed=seed)
            support = {name: torch.cat([earlier[name], new[name]]).sort().values for name in maskable}
            wait_for_all()
            if is_first_of_node():
                write_tensors(support, file)
            wait_for_all()
        return load_file(file)

    def _phase(self, name: str, support: Mapping[str, Tensor] | None, pull_to: Mapping[str, Tensor]) -> PhaseResult:
        settings: PhaseSettings = getattr(self.recipe, name)
        phase = Phase(
            name=name,
            model=self.model,
            objective=self.objective,
            maskable={} if name == "head" else self.roles.maskable,
            head=self.roles.head,
            support=support,
            pull_to=pull_to,
            settings=settings,
            recipe=self.recipe,
            seed=derive_seed(self.seed, self.number, name),
            examples=self.data.examples,
            held_out=self.data.held_out,
            folder=self.folder / f"{self.number}-{name}",
            checkpoint_seconds=self.checkpoint_seconds,
            device=self.device,
            should_stop=self.should_stop,
        )

        def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            self._report(name, step, steps, metrics)

        return run_phase(phase, report)

    def _report(self, stage: str, step: int = 0, steps: int = 0, metrics: Mapping[str, float] | None = None) -> None:
        if self.on_progress is not None and is_first_process():
            self.on_progress(Progress(stage, step, steps, metrics or {}, self.number))


def derive_seed(*parts: object) -> int:
    """Give a seed that depends on all of the parts, in [0, 2**31)."""
    digest = hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


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
