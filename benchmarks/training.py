"""The training procedures that language_step and task_step set side by side: ours, the plain one and the limit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.bases import Size, build_masked_lm, build_token_classifier
from benchmarks.stepping import Gate
from ltsft.base import Roles, parameter_roles
from ltsft.config import PhaseSettings, Precision, Recipe
from ltsft.objectives import IGNORE, MaskedLM, Objective, TaggedPiece, TokenClassification
from ltsft.training import Phase, run_phase

LABELS = tuple(f"L{i:02}" for i in range(17))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ENDLESS = 1_000_000
RATE = 5e-5


def build_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """Build a tokenizer with as many sub-words as the model: only its numbers are needed here."""
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, *(f"w{i}" for i in range(size.vocabulary - 5))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def random_support(roles: Roles, k: int) -> dict[str, Tensor]:
    """Give K flat indices spread evenly over the maskable weights, int32, by name."""
    generator = torch.Generator().manual_seed(0)
    density, support, left = k / roles.size, {}, k
    for number, (name, p) in enumerate(roles.maskable.items(), start=1):
        wanted = left if number == len(roles.maskable) else min(left, round(density * p.numel()))
        drawn = torch.randint(p.numel(), (int(wanted * 1.05) + 100,), generator=generator).unique()
        while len(drawn) < wanted:
            drawn = torch.cat([drawn, torch.randint(p.numel(), (wanted,), generator=generator)]).unique()
        keep = torch.randperm(len(drawn), generator=generator)[:wanted].sort().values
        support[name] = drawn[keep].int()
        left -= wanted
    return support


def language_examples(size: Size, length: int) -> Tensor:
    """Give sequences of random sub-words between the special ones, (64, length), int32."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, size.vocabulary, (64, length), generator=generator, dtype=torch.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    return ids


def task_examples(size: Size, length: int) -> list[TaggedPiece]:
    """Give sentences of random sub-words, two a word, with random labels."""
    pieces = []
    for number, ids in enumerate(language_examples(size, length).tolist()):
        labels = [IGNORE if i in (0, length - 1) or i % 2 else (number + i) % len(LABELS) for i in range(length)]
        pieces.append(TaggedPiece(number, tuple(ids), tuple(labels), length // 2))
    return pieces


def build(kind: str, size: Size, length: int) -> tuple[PreTrainedModel, Objective, Any]:
    """Build the model, the objective and the examples of a kind of SFT: "language" or "task"."""
    tokenizer = build_tokenizer(size)
    if kind == "language":
        rows = language_examples(size, length).numpy()
        return build_masked_lm(size), MaskedLM(tokenizer), rows
    objective = TokenClassification(tokenizer, labels=LABELS, max_length=length)
    return build_token_classifier(size, LABELS), objective, task_examples(size, length)


def our_steps(
    gate: Gate,
    kind: str,
    size: Size,
    batch: int,
    length: int,
    phase: str,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> None:
    """Train as `ltsft` does: the phase as `train_sft` runs it, Trainer and all."""
    model, objective, examples = build(kind, size, length)
    nn.Module.to(model, device)
    roles = parameter_roles(model)
    support = None
    origin: dict[str, Tensor] = {}
    if phase == "sparse":
        support = random_support(roles, size.language_support if kind == "language" else size.task_support)
        origin = {n: roles.maskable[n].detach().cpu().reshape(-1)[indices.long()] for n, indices in support.items()}
    with tempfile.TemporaryDirectory() as folder:
        run_phase(
            Phase(
                name=phase,
                model=model,
                objective=objective,
                maskable=roles.maskable,
                head=roles.head,
                support=support,
                pull_to=origin,
                settings=PhaseSettings(min_steps=ENDLESS, max_steps=ENDLESS, learning_rate=RATE),
                recipe=Recipe(density=1.0, batch_size=batch, max_length=length, evaluations=1, precision=precision),
                seed=0,
                examples=examples,
                held_out=[],
                folder=Path(folder),
                checkpoint_seconds=1e9,
                device=device,
            ),
            lambda *_: gate(),
        )


def plain_steps(
    gate: Gate, kind: str, size: Size, batch: int, length: int, phase: str, device: str = "cpu", bf16: bool = False
) -> None:
    """Train as the paper states it: dense gradients, masked by hand, clipped, and a dense AdamW; logits everywhere."""
    model, objective, examples = build(kind, size, length)
    nn.Module.to(model, device).train()
    roles = parameter_roles(model)
    batches = _plain_batches(kind, objective, size, examples, batch)
    masks = {}
    if phase == "sparse":
        k = size.language_support if kind == "language" else size.task_support
        for name, indices in random_support(roles, k).items():
            masks[name] = torch.zeros(roles.maskable[name].shape, dtype=torch.bool, device=device)
            masks[name].view(-1)[indices.long().to(device)] = True
    for p in model.parameters():
        p.requires_grad_(False)
    trained = [*roles.maskable.values(), *roles.head.values()]
    for p in trained:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    gate()
    while True:
        for inputs in batches:
            moved = {name: tensor.to(device) for name, tensor in inputs.items()}
            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                loss = model(**moved).loss
            loss.backward()
            for name, mask in masks.items():
                gradient = roles.maskable[name].grad
                if gradient is not None:
                    gradient.mul_(mask)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            gate()


def limit_steps(
    gate: Gate, kind: str, size: Size, batch: int, length: int, device: str = "cpu", bf16: bool = False
) -> None:
    """Go forward and backward and learn nothing: what no training can be faster than."""
    model, objective, examples = build(kind, size, length)
    nn.Module.to(model, device).train()
    roles = parameter_roles(model)
    for p in model.parameters():
        p.requires_grad_(False)
    for p in (*roles.maskable.values(), *roles.head.values()):
        p.requires_grad_(True)
    batches = [
        objective.collate([examples[i] for i in range(start, start + batch)], torch.Generator().manual_seed(start))
        for start in range(0, len(examples) - batch + 1, batch)
    ]
    gate()
    while True:
        for inputs in batches:
            moved = {name: tensor.to(device) for name, tensor in inputs.items()}
            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                loss = objective.loss(model, moved)
            loss.backward()
            model.zero_grad()
            gate()


def _plain_batches(
    kind: str, objective: Objective, size: Size, examples: Sequence[Any], batch: int
) -> list[dict[str, Tensor]]:
    starts = range(0, len(examples) - batch + 1, batch)
    if kind == "language":
        collator = DataCollatorForLanguageModeling(build_tokenizer(size), mlm=True, mlm_probability=0.15)
        rows = torch.as_tensor(examples).long()
        batches = [dict(collator(list(rows[i : i + batch]))) for i in starts]
        return [{name: b[name] for name in ("input_ids", "labels")} for b in batches]
    return [objective.collate([examples[j] for j in range(i, i + batch)], torch.Generator()) for i in starts]
