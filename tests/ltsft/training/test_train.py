"""Learning an SFT: exactly K, nothing off the support, the same bytes again, and errors that name the phase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ltsft.base import Base, load_base, parameter_roles
from ltsft.composition.compose import composed
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.errors import ConfigError, TrainingError
from ltsft.evaluation.weight_interference import interference
from ltsft.objectives.token_classification import TokenClassification
from ltsft.sft.files import load_sft, save_sft
from ltsft.sft.sft import SFT
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.stages import Progress, derive_seed
from ltsft.training.train import train_sft


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


class Watch:
    """Keeps the model that is trained, what was reported, and the encoder after the last step of each phase."""

    def __init__(self, objective: Any) -> None:
        self.reports: list[Progress] = []
        self.encoders: list[dict[str, Tensor]] = []
        self._objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        self.model: PreTrainedModel = self._objective.build_model(base, seed=seed)
        return self.model

    def report(self, progress: Progress) -> None:
        self.reports.append(progress)
        if (
            progress.step
            and progress.step == progress.steps
            and not any(name.endswith(".loss") for name in progress.metrics)
        ):
            self.encoders.append({n: p.detach().clone() for n, p in self.model.base_model.named_parameters()})


Learn = Callable[..., tuple[SFT, Watch]]


@pytest.fixture
def learn(base: Base, learning: ModuleType, tmp_path: Path) -> Learn:
    """Train an SFT in a folder of its own: `learn("language", recipe)`."""
    count = 0

    def run(
        kind: str, recipe: Any, *, seed: int = 1, words: int | None = None, applied: tuple[SFT, ...] = (), **more: Any
    ) -> tuple[SFT, Watch]:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        objective, data = (
            learning.masked_lm(base.tokenizer, folder)
            if kind == "language"
            else learning.tagging(base.tokenizer, words=words)
        )
        watch = Watch(objective)
        sft = train_sft(
            base,
            Training(
                objective=watch,
                kind=kind,
                subject="aa" if kind == "language" else "pos",
                recipe=recipe,
                seed=seed,
                data=data,
                applied=applied,
                source_languages=("aa",) if kind == "task" else (),
                **more,
            ),
            folder=folder,
            device="cpu",
            on_progress=watch.report,
        )
        return sft, watch

    return run


@pytest.fixture(scope="module")
def encoder(base: Base) -> dict[str, Tensor]:
    return dict(base.masked_lm().base_model.named_parameters())


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.detach().reshape(-1).view(torch.int32), second.detach().reshape(-1).view(torch.int32))


def assert_equal_off_support(after: dict[str, Tensor], before: dict[str, Tensor], sft: SFT) -> None:
    """Off the support every bit is as before; on it the weights are before + diff."""
    for name, value in after.items():
        off = torch.ones(value.numel(), dtype=torch.bool)
        if name in sft.diffs:
            indices = sft.diffs[name].indices.long()
            off[indices] = False
            expected = before[name].detach().reshape(-1)[indices] + sft.diffs[name].values
            torch.testing.assert_close(value.reshape(-1)[indices], expected, rtol=0, atol=1e-6)
        assert same_bits(value.reshape(-1)[off], before[name].detach().reshape(-1)[off]), name


def moved(sft: SFT) -> int:
    return sum(int((diff.values != 0).sum()) for diff in sft.diffs.values())


@pytest.mark.parametrize("kind", ["language", "task"])
def test_only_the_support_moves_and_it_has_exactly_k_weights(
    kind: str, learn: Learn, learning: ModuleType, base: Base, encoder: dict[str, Tensor]
) -> None:
    sft, watch = learn(kind, learning.make_recipe(density=0.13, evaluations=1))
    size = parameter_roles(base.masked_lm()).size
    assert sft.maskable == size
    assert sft.support_size == int(0.13 * size)
    assert moved(sft) > 0.5 * sft.support_size
    assert_equal_off_support(watch.encoders[-1], encoder, sft)
    assert all(diff.problem() is None for diff in sft.diffs.values())
    assert not any("norm" in name.lower() for name in sft.diffs)


def test_the_full_phase_moves_everything_and_the_rewind_takes_it_back(
    learn: Learn, learning: ModuleType, encoder: dict[str, Tensor]
) -> None:
    sft, watch = learn("language", learning.make_recipe(evaluations=1))
    full, _ = watch.encoders
    for name, diff in sft.diffs.items():
        move = (full[name] - encoder[name]).abs().reshape(-1)
        kept = torch.zeros(diff.size, dtype=torch.bool)
        kept[diff.indices.long()] = True
        if kept.any() and not kept.all():
            assert move[kept].min() >= move[~kept].max(), name
        assert (move[~kept] > 0).any() or kept.all(), name
    least = min(
        float((full[n] - encoder[n]).detach().abs().reshape(-1)[d.indices.long()].min())
        for n, d in sft.diffs.items()
        if d.support_size
    )
    larger = sum(int(((full[n] - encoder[n]).abs() > least).sum()) for n in sft.diffs)
    assert larger <= sft.support_size  # the choice is over all parameters at once


@pytest.mark.parametrize("iterations", [2, 3])
def test_several_iterations_share_k_exactly(
    iterations: int, learn: Learn, learning: ModuleType, encoder: dict[str, Tensor]
) -> None:
    sft, watch = learn("language", learning.make_recipe(iterations=iterations, size=1001, density=None, evaluations=1))
    assert sft.support_size == 1001
    assert_equal_off_support(watch.encoders[-1], encoder, sft)
    history = sft.details["history"]
    assert [h["phase"] for h in history] == ["full", "sparse"] * iterations
    assert [h["iteration"] for h in history] == [i for i in range(iterations) for _ in range(2)]


def test_a_size_of_one_weight_is_enough(learn: Learn, learning: ModuleType) -> None:
    sft, _ = learn("task", learning.make_recipe(size=1, density=None, steps=2))
    assert sft.support_size == 1


def test_a_task_sft_is_the_difference_to_base_plus_source_sft(
    learn: Learn, learning: ModuleType, base: Base, encoder: dict[str, Tensor]
) -> None:
    source, _ = learn("language", learning.make_recipe(rate=1e-2))
    task, watch = learn("task", learning.make_recipe(evaluations=1), applied=(source,))
    tagger = base.token_classifier(learning.LABELS, seed=1)
    with composed(tagger, [(source, 1.0)], base=base.ref):
        start = {name: p.detach().clone() for name, p in tagger.base_model.named_parameters()}
    assert any(not torch.equal(start[name], encoder[name]) for name in start)
    assert_equal_off_support(watch.encoders[-1], start, task)
    with composed(tagger, [(source, 1.0), (task, 1.0)], base=base.ref):
        for name, p in tagger.base_model.named_parameters():
            torch.testing.assert_close(p, watch.encoders[-1][name], rtol=0, atol=1e-6)
        assert torch.equal(tagger.classifier.weight, task.head["classifier.weight"])


def test_a_disjoint_task_sft_shares_no_weight_with_the_source_languages_and_keeps_k(
    learn: Learn, learning: ModuleType
) -> None:
    language, _ = learn("language", learning.make_recipe())
    recipe = learning.make_recipe(disjoint=True)
    task, _ = learn("task", recipe, applied=[language], apart_from=[language])
    plain, _ = learn("task", learning.make_recipe(), applied=[language], apart_from=[language])

    met = interference(language, task).overall
    assert met.intersection == 0
    assert task.support_size == plain.support_size == language.support_size
    assert interference(language, plain).overall.intersection > 0
    with pytest.raises(ConfigError, match="disjoint leaves"):
        learn("task", learning.make_recipe(disjoint=True, density=0.9), applied=[language], apart_from=[language])


def test_the_head_is_trained_whole_and_output_embeddings_stay(learn: Learn, learning: ModuleType, base: Base) -> None:
    language, watch = learn("language", learning.make_recipe())
    output = watch.model.get_output_embeddings()
    assert same_bits(output.weight, base.masked_lm().get_output_embeddings().weight)
    assert not any("decoder" in name for name in language.head)
    assert not same_bits(
        language.head["cls.predictions.transform.dense.weight"],
        base.masked_lm().cls.predictions.transform.dense.weight,
    )
    task, _ = learn("task", learning.make_recipe())
    assert set(task.head) == {"classifier.weight", "classifier.bias"}
    assert task.labels == learning.LABELS


def saved_bytes(sft: SFT, folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(save_sft(sft, folder).iterdir())}


@pytest.mark.parametrize("kind", ["language", "task"])
def test_the_same_inputs_give_the_same_bytes_and_another_seed_does_not(
    kind: str, learn: Learn, learning: ModuleType, tmp_path: Path
) -> None:
    recipe = learning.make_recipe()
    torch.manual_seed(5)
    first = saved_bytes(learn(kind, recipe)[0], tmp_path / "first")
    torch.manual_seed(6)
    again = saved_bytes(learn(kind, recipe)[0], tmp_path / "again")
    other = saved_bytes(learn(kind, recipe, seed=2)[0], tmp_path / "other")
    assert set(first) == {"sft.safetensors", "sft.json", "README.md"}
    assert first == again
    assert first["sft.safetensors"] != other["sft.safetensors"]


def test_a_learnt_sft_is_what_is_read_back(learn: Learn, learning: ModuleType, tmp_path: Path) -> None:
    sft, _ = learn("task", learning.make_recipe(steps=2))
    read = load_sft(save_sft(sft, tmp_path / "sft"))
    assert all(torch.equal(read.diffs[name].values, diff.values) for name, diff in sft.diffs.items())
    assert read.details["recipe"]["seed"] == 1
    assert read.details["history"] == sft.details["history"]


def whole_diff(sft: SFT) -> Tensor:
    return torch.cat([diff.dense().reshape(-1) for diff in sft.diffs.values()])


def test_accumulated_micro_batches_learn_what_one_batch_learns(learn: Learn, learning: ModuleType) -> None:
    """Up to rounding, where every micro-batch has as many labelled words; key biases have no gradient but rounding."""
    same = {"density": 1.0, "dropout": 0.0, "freeze": ("*key.bias",), "evaluations": 1}
    at_once, _ = learn("task", learning.make_recipe(**same), words=3)
    in_four, _ = learn("task", learning.make_recipe(accumulation=4, **same), words=3)
    gap = (whole_diff(at_once) - whole_diff(in_four)).norm() / whole_diff(at_once).norm()
    assert float(gap) < 0.01
    without_dropout, _ = learn("task", learning.make_recipe(**{**same, "dropout": 0.3}), words=3)
    assert float((whole_diff(at_once) - whole_diff(without_dropout)).norm() / whole_diff(at_once).norm()) > 0.05


def test_the_l1_pull_keeps_the_weights_closer_to_the_base(learn: Learn, learning: ModuleType) -> None:
    free, _ = learn("language", learning.make_recipe(density=1.0))
    pulled, _ = learn("language", learning.make_recipe(density=1.0, l1=1000.0))
    assert float(whole_diff(pulled).abs().sum()) < 0.7 * float(whole_diff(free).abs().sum())


def test_what_is_reported_is_what_happened(learn: Learn, learning: ModuleType, encoder: dict[str, Tensor]) -> None:
    sft, watch = learn("language", learning.make_recipe(steps=6, evaluations=3))
    stages = list(dict.fromkeys(report.stage for report in watch.reports))
    assert stages == ["full", "selection", "sparse"]
    for stage, (number, after) in zip(("full", "sparse"), enumerate(watch.encoders), strict=True):
        own = [r for r in watch.reports if r.stage == stage]
        assert sorted({r.step for r in own}) == [1, 2, 3, 4, 5, 6]
        measured = {name: value for r in own for name, value in r.metrics.items()}
        names = ["loss", "learning_rate", "l1_distance", "tokens_per_second", "held_out", "held_out_score"]
        assert set(measured) == {f"{stage}.{name}" for name in names}
        distance = sum(float((after[n] - encoder[n]).abs().sum()) for n in sft.diffs)
        assert measured[f"{stage}.l1_distance"] == pytest.approx(distance, rel=1e-4)
        scores = [r.metrics[f"{stage}.held_out_score"] for r in own if f"{stage}.held_out_score" in r.metrics]
        assert len(scores) == 3
        entry = sft.details["history"][number]
        assert entry["best_score"] == max(scores)
        assert entry["best_step"] == 2 * (scores.index(max(scores)) + 1)


def test_a_head_phase_trains_the_head_alone_and_is_not_rewound(
    learn: Learn, learning: ModuleType, base: Base, encoder: dict[str, Tensor]
) -> None:
    head = PhaseSettings(min_steps=4, max_steps=4, learning_rate=1e-2)
    sft, watch = learn("task", learning.make_recipe(rate=1e-12, head=head, iterations=2))

    assert list(dict.fromkeys(report.stage for report in watch.reports)) == ["head", "full", "selection", "sparse"]
    assert [h["phase"] for h in sft.details["history"]] == ["head", "full", "sparse", "full", "sparse"]
    assert all(torch.equal(watch.encoders[0][name], weight) for name, weight in encoder.items())
    new = dict(base.token_classifier(learning.LABELS, seed=1).named_parameters())
    for name, value in sft.head.items():
        assert float((value - new[name]).abs().max()) > 1e-3, name


def test_the_best_weights_are_kept_not_the_last(learn: Learn, learning: ModuleType, base: Base) -> None:
    sft, _ = learn("task", learning.make_recipe(rate=3e-2, steps=9, evaluations=9))
    tagger = base.token_classifier(learning.LABELS, seed=1).eval()
    objective, data = learning.tagging(base.tokenizer)
    with composed(tagger, [(sft, 1.0)], base=base.ref):
        found = objective.evaluate(tagger, data.held_out)
    assert found.score == sft.details["history"][1]["best_score"]


@pytest.mark.parametrize(
    ("epochs", "least", "most", "steps"), [(0.5, 1, None, 4), (2.0, 1, 3, 3), (0.01, 5, None, 5), (1.0, 1, None, 8)]
)
def test_a_phase_is_its_epochs_long_bounded_by_steps(
    epochs: float, least: int, most: int | None, steps: int, learn: Learn, learning: ModuleType
) -> None:
    recipe = learning.make_recipe()
    sparse = recipe.sparse.model_copy(update={"epochs": epochs, "min_steps": least, "max_steps": most})
    full = recipe.full.model_copy(update={"min_steps": 1, "max_steps": 1})
    sft, _ = learn("task", recipe.model_copy(update={"sparse": sparse, "full": full}))
    assert [h["steps"] for h in sft.details["history"]] == [1, steps]


def test_bf16_learns_float32_diffs(learn: Learn, learning: ModuleType) -> None:
    recipe = learning.make_recipe(precision="bf16", steps=4)
    for kind in ("language", "task"):
        sft, _ = learn(kind, recipe)
        assert all(d.problem() is None and d.values.dtype == torch.float32 for d in sft.diffs.values())
        assert all(value.dtype == torch.float32 for value in sft.head.values())
        assert moved(sft) > 0.5 * sft.support_size


@pytest.mark.parametrize(("rates", "phase"), [((1e30, 1e-3), "full"), ((1e-3, 1e30), "sparse")])
def test_a_loss_that_is_not_finite_names_the_phase_and_the_learning_rate(
    rates: tuple[float, float], phase: str, learn: Learn, learning: ModuleType
) -> None:
    with pytest.raises(TrainingError, match=rf"the {phase} phase lost its way: .*learning_rate \(now 1e\+30\)"):
        learn("language", learning.make_recipe(rate=rates[0], sparse_rate=rates[1], steps=5))


def test_a_phase_without_a_score_that_is_a_number_is_refused(learn: Learn, learning: ModuleType) -> None:
    with pytest.raises(TrainingError, match=r"the full phase lost its way: .*learning_rate \(now 1e\+30\)"):
        learn("language", learning.make_recipe(rate=1e30, steps=1))


def test_no_examples_and_patterns_without_a_match_are_refused(base: Base, learning: ModuleType, tmp_path: Path) -> None:
    objective, data = learning.tagging(base.tokenizer)

    def learn(recipe: Recipe, data: TrainingData = data) -> None:
        training = Training(objective=objective, kind="task", subject="pos", recipe=recipe, seed=1, data=data)
        train_sft(base, training, folder=tmp_path, device="cpu")

    with pytest.raises(TrainingError, match="task SFT pos: there is nothing to train on"):
        learn(learning.make_recipe(), TrainingData([], data.held_out))
    with pytest.raises(ConfigError, match="matches no encoder parameter"):
        learn(learning.make_recipe(freeze=("nothing.*",)))
    with pytest.raises(ConfigError, match="size must be between 1 and"):
        learn(learning.make_recipe(size=10**9, density=None))


HOOKS = ("begin_phase", "before_batch", "before_step", "keep_first_stage", "drop_first_stage", "figures")


def test_an_objective_is_told_where_its_training_is(base: Base, learning: ModuleType, tmp_path: Path) -> None:
    told: list[str] = []

    class Told(TokenClassification):
        def __getattribute__(self, name: str) -> Any:
            if name in HOOKS:
                told.append(name)
            return super().__getattribute__(name)

    _, data = learning.tagging(base.tokenizer)
    recipe = learning.make_recipe(steps=2, evaluations=1, head=PhaseSettings(min_steps=1, max_steps=1))
    objective = Told(base.tokenizer, labels=learning.LABELS, max_length=learning.LENGTH)
    training = Training(objective=objective, kind="task", subject="pos", recipe=recipe, seed=1, data=data)
    train_sft(base, training, folder=tmp_path, device="cpu")

    step = ["before_batch", "before_step", "before_step", "figures"]  # after a step it is asked once more
    head, full = ["begin_phase", *step], ["begin_phase", *step, *step]
    assert told == [*head, *full, "keep_first_stage", *full, "drop_first_stage"]


def test_a_derived_seed_depends_on_every_part() -> None:
    seeds = {derive_seed(*parts) for parts in [(1, 0, "full"), (2, 0, "full"), (1, 1, "full"), (1, 0, "sparse")]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(1, 0, "full") == derive_seed(1, 0, "full")
