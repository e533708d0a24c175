"""One phase of training on Hugging Face's Trainer: time-based checkpoints, held-out scores, the best weights kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ltsft.config import PhaseSettings, Recipe
from ltsft.errors import InterruptedTraining, TrainingError
from ltsft.objectives import Objective
from ltsft.precision import autocast
from ltsft.training.checkpoints import WHOLE, newest_checkpoint
from ltsft.training.dropout import lean_dropout
from ltsft.training.loss_module import LossModule
from ltsft.training.processes import (
    any_process,
    complete_on_each_node,
    is_first_of_node,
    of_first_process,
    wait_for_all,
)

OnStep = Callable[[int, int, Mapping[str, float]], None]
POOL_BATCHES = 50
LOGS_IN_A_PHASE = 50


@dataclass(frozen=True)
class Phase:
    """What a phase trains, on what, and where its checkpoints go.

    Attributes:
        support: strictly increasing flat indices of the weights that may train, by name of the maskable parameter;
            None lets all of them train.
        pull_to: values that the L1 penalty pulls to and that the distance is measured from: of the weights on the
            support, (k,) each; of whole parameters where there is none. Read once where the penalty is used, and at
            each log otherwise, so a mapping that reads from a file costs no memory.
    """

    name: str
    model: nn.Module
    objective: Objective
    maskable: Mapping[str, nn.Parameter]
    head: Mapping[str, nn.Parameter]
    support: Mapping[str, Tensor] | None
    pull_to: Mapping[str, Tensor]
    settings: PhaseSettings
    recipe: Recipe
    seed: int
    examples: Sequence[Any]
    held_out: Sequence[Any]
    folder: Path
    checkpoint_seconds: float
    device: str
    should_stop: Callable[[], bool] | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps: the epochs, bounded by the minimum and the maximum."""
        wanted = math.ceil(self.settings.epochs * len(self.examples) / self.recipe.batch_size)
        longest = self.settings.max_steps or wanted
        return max(self.settings.min_steps, min(wanted, longest))


@dataclass(frozen=True)
class PhaseResult:
    """How a phase ended: its length, and the step and held-out score of the weights that were kept."""

    name: str
    steps: int
    step: int
    score: float


def run_phase(phase: Phase, report: OnStep) -> PhaseResult:
    """Train one phase and leave the best weights in the model.

    A phase that is done already is read back; one that was interrupted goes on from its last whole checkpoint.

    Raises:
        TrainingError: the loss is not finite.
        InterruptedTraining: it was asked to stop, and a checkpoint is saved.
    """
    phase.folder.mkdir(parents=True, exist_ok=True)
    phase.objective.begin_phase(phase.name)
    done, best = phase.folder / "done.json", phase.folder / "best.safetensors"
    module = LossModule(
        phase.model,
        phase.objective,
        maskable=phase.maskable,
        head=phase.head,
        support=phase.support,
        pull_to=phase.pull_to,
        l1=phase.settings.l1,
    )
    if not done.is_file():
        _train(phase, module, report)
        wait_for_all()
        if not best.is_file():
            raise TrainingError(
                f"the {phase.name} phase lost its way: the held-out score was never a number; "
                f"lower learning_rate (now {phase.settings.learning_rate}) or use precision fp32"
            )
        if is_first_of_node():
            write_text(json.dumps({"steps": phase.steps, **_read_facts(best)}), done)
        wait_for_all()
    module.load_state_dict(load_file(best))
    for checkpoint in phase.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    found = json.loads(done.read_text())
    return PhaseResult(phase.name, found["steps"], found["step"], found["score"])


def _train(phase: Phase, module: LossModule, report: OnStep) -> None:
    steps = phase.steps
    recipe = phase.recipe
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch, rest = divmod(recipe.batch_size, recipe.accumulation * processes)
    if rest:
        raise TrainingError(
            f"batch_size ({recipe.batch_size}) must be a multiple of accumulation ({recipe.accumulation}) "
            f"x processes ({processes})"
        )
    arguments = TrainingArguments(
        output_dir=str(phase.folder),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=phase.settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(recipe.warmup * steps),
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        seed=phase.seed,
        train_sampling_strategy="sequential",
        save_strategy="no",  # _Watch saves, by time
        save_total_limit=2,
        save_on_each_node=True,
        logging_steps=max(1, steps // LOGS_IN_A_PHASE),
        logging_nan_inf_filter=False,
        report_to="none",
        use_cpu=phase.device == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=phase.device != "cpu",
        accelerator_config={"non_blocking": phase.device != "cpu"},
        ddp_broadcast_buffers=False,
    )
    watch = _Watch(phase, module, report)
    trainer = Trainer(
        model=module,
        args=arguments,
        train_dataset=_ExampleStream(phase.examples, phase, steps * recipe.batch_size),
        data_collator=_collator(phase, module),
        optimizers=(_optimizer(phase, module), None),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    with lean_dropout(phase.model):
        trainer.train(resume_from_checkpoint=newest_checkpoint(phase.folder))
    if watch.was_stopped:
        raise InterruptedTraining(f"asked to stop; saved the {phase.name} phase at step {trainer.state.global_step}")


def _optimizer(phase: Phase, module: LossModule) -> torch.optim.Optimizer:
    groups = [
        {"params": list(module.maskable.values()), "weight_decay": phase.recipe.weight_decay},
        {"params": list(phase.head.values()), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=phase.settings.learning_rate, fused=True
    )
    if module.sparse is not None:
        module.sparse.follow(optimizer)
    optimizer.register_step_pre_hook(lambda *_: phase.objective.before_step())
    return optimizer


class _ExampleStream(Dataset[tuple[int, Any]]):
    """All examples of a phase in the order of training; what stands where depends on the seed alone."""

    def __init__(self, examples: Sequence[Any], phase: Phase, total: int) -> None:
        self._examples = examples
        self._total = total
        self._seed = phase.seed
        self._batch = phase.recipe.batch_size
        self._lengths = phase.objective.lengths(examples)
        self._epoch = -1
        self._order = torch.empty(0)
        batches = -(-total // self._batch)
        self._whole = phase.objective.order(examples, batches, self._batch, seed=phase.seed)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, position: int) -> tuple[int, Any]:
        if self._whole is not None:
            return position, self._examples[int(self._whole[position])]
        epoch, place = divmod(position, len(self._examples))
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffle(epoch), epoch
        return position, self._examples[int(self._order[place])]

    def _shuffle(self, epoch: int) -> Tensor:
        """Shuffle, then put examples of like length into the same batch, within pools of POOL_BATCHES batches."""
        generator = torch.Generator().manual_seed(self._seed + epoch)
        shuffled = torch.randperm(len(self._examples), generator=generator)
        lengths = self._lengths
        if lengths is None:
            return shuffled
        order = shuffled.tolist()
        pool = self._batch * POOL_BATCHES
        batches = []
        for start in range(0, len(order), pool):
            ordered = sorted(order[start : start + pool], key=lambda i: lengths[i])
            batches += [ordered[i : i + self._batch] for i in range(0, len(ordered), self._batch)]
        of_batches = torch.randperm(len(batches), generator=generator).tolist()
        return torch.tensor([example for i in of_batches for example in batches[i]])


def _collator(phase: Phase, module: LossModule) -> Callable[[list[tuple[int, Any]]], dict[str, Any]]:
    def collate(items: list[tuple[int, Any]]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(phase.seed * 1_000_003 + items[0][0])
        batch = phase.objective.collate([example for _, example in items], generator)
        counted = batch.get("attention_mask")
        module.tokens += batch["input_ids"].numel() if counted is None else int(counted.sum())
        return {"batch": batch}

    return collate


class _Watch(TrainerCallback):
    """Saves by time, scores the held-out examples, keeps the best weights and reports."""

    def __init__(self, phase: Phase, module: LossModule, report: OnStep) -> None:
        self._phase = phase
        self._module = module
        self._report = report
        self._steps = phase.steps
        count = min(phase.recipe.evaluations, self._steps)
        self._evaluate_at = {math.ceil(self._steps * i / count) for i in range(1, count + 1)}
        self._best_file = phase.folder / "best.safetensors"
        self._saved_at = self._counted_at = time.monotonic()
        self._metrics: dict[str, float] = {}
        self.was_stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._phase.objective.before_step()  # a step that loss scaling skipped has not done it
        if state.global_step in self._evaluate_at:
            self._evaluate(state.global_step)
        if state.global_step < self._steps:
            is_asked = self._phase.should_stop is not None and self._phase.should_stop()
            self.was_stopped = any_process(is_asked, args.device)
            is_due = time.monotonic() - self._saved_at >= self._phase.checkpoint_seconds
            if self.was_stopped or of_first_process(is_due, args.device):
                control.should_save = True
            control.should_training_stop = control.should_training_stop or self.was_stopped
        if state.is_world_process_zero:
            self._report(state.global_step, self._steps, self._metrics)
        self._metrics = {}
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"the {self._phase.name} phase lost its way: the loss at step {state.global_step} is {logs['loss']}; "
                f"lower learning_rate (now {self._phase.settings.learning_rate}) or use precision fp32"
            )
        now = time.monotonic()
        with torch.no_grad():
            distance = float(self._module.l1_distance())
        seconds = max(now - self._counted_at, 1e-9)
        metrics = {
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "l1_distance": distance,
            "tokens_per_second": self._module.tokens * args.world_size / seconds,
        }
        metrics |= self._phase.objective.figures()
        self._module.tokens, self._counted_at = 0, now
        self._report(state.global_step, self._steps, self._named(metrics))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        wait_for_all()
        self._saved_at = time.monotonic()
        folder = self._phase.folder / f"checkpoint-{state.global_step}"
        complete_on_each_node(folder, "rng_state_{rank}.pth", args.device)
        if not is_first_of_node():
            return
        sizes = {f.name: f.stat().st_size for f in sorted(folder.iterdir()) if f.is_file()}
        write_text(json.dumps(sizes), folder / WHOLE)

    def _evaluate(self, step: int) -> None:
        model = cast(Any, self._phase.model)
        model.eval()
        with autocast(self._phase.recipe.precision, self._phase.device):
            evaluation = self._phase.objective.evaluate(model, self._phase.held_out)
        model.train()
        names = {"held_out": evaluation.metrics["loss"], "held_out_score": evaluation.score}
        self._metrics = {**self._metrics, **self._named(names)}
        best = _read_facts(self._best_file)["score"] if self._best_file.is_file() else -math.inf
        is_better = of_first_process(evaluation.score > best, torch.device(self._phase.device))
        if is_better and is_first_of_node():
            weights = {name: p.detach().cpu() for name, p in self._module.trained.items()}
            write_tensors(weights, self._best_file, {"step": step, "score": evaluation.score})

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {f"{self._phase.name}.{name}": value for name, value in metrics.items()}


def _read_facts(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        facts: dict[str, Any] = json.loads(opened.metadata()["facts"])
    return facts


def write_tensors(tensors: Mapping[str, Tensor], file: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and facts as JSON beside them, so that a reader sees the whole file or none."""
    metadata = None if facts is None else {"facts": json.dumps(dict(facts))}
    temporary = file.with_name(file.name + ".partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata)
    temporary.replace(file)


def write_text(text: str, file: Path) -> None:
    """Write a text so that a reader sees the whole file or none."""
    temporary = file.with_name(file.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
