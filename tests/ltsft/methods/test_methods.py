"""Methods whose product is a diff: what each selects, against results computed otherwise, and what they share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltsft.base import Base, load_base, parameter_roles
from ltsft.composition.compose import composed
from ltsft.errors import ConfigError
from ltsft.methods.denoised import denoise, low_order
from ltsft.methods.random_support import RandomSupport
from ltsft.methods.registry import METHODS
from ltsft.project.plan import Fingerprints, make_plan, products
from ltsft.project.project import Project, load_project
from ltsft.sft.files import load_sft, save_sft
from ltsft.sft.sft import SFT
from ltsft.training.prepare import Training
from ltsft.training.stages import Progress
from ltsft.training.train import train_sft

CONFIGS = Path(__file__).parents[3] / "configs"
SIZES = {"large": (700, 40), "wide": (12, 90), "square": (30, 30)}


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


Learn = Callable[..., tuple[SFT, list[Progress]]]


@pytest.fixture
def learn(base: Base, learning: ModuleType, tmp_path: Path) -> Learn:
    """Learn a tagging SFT by a method; gives it with what was reported."""
    count = 0

    def run(method: str, *, seed: int = 1, applied: tuple[SFT, ...] = (), **more: Any) -> tuple[SFT, list[Progress]]:
        nonlocal count
        count += 1
        objective, data = learning.tagging(base.tokenizer)
        reports: list[Progress] = []
        sft = train_sft(
            base,
            Training(
                objective=objective,
                kind="task",
                subject="pos",
                recipe=learning.make_recipe(**{"steps": 4, **more}),
                seed=seed,
                method=method,
                data=data,
                applied=applied,
                source_languages=("aa",),
            ),
            folder=tmp_path / str(count),
            device="cpu",
            on_progress=reports.append,
        )
        return sft, reports

    return run


def matrix(size: str) -> Tensor:
    """A matrix with singular values that fall, as those of a fine-tuning do."""
    rng = np.random.default_rng(0)
    rows, columns = SIZES[size]
    left, _ = np.linalg.qr(rng.normal(size=(rows, min(rows, columns))))
    right, _ = np.linalg.qr(rng.normal(size=(columns, min(rows, columns))))
    values = 1e-3 * 0.8 ** np.arange(min(rows, columns))
    return torch.from_numpy((left * values) @ right.T).float()


@pytest.mark.parametrize("size", SIZES)
def test_the_low_order_part_is_that_of_numpys_singular_value_decomposition(size: str) -> None:
    difference = matrix(size)
    left, values, right = np.linalg.svd(difference.numpy().astype(np.float64), full_matrices=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    for variance in (0.5, 0.9, 0.99):
        rank = next(r for r in range(1, len(values) + 1) if shares[r - 1] >= variance)
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        for found in (low_order(difference, variance=variance), low_order(difference, rank=rank)):
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
    assert not low_order(torch.zeros(9, 4), variance=0.9).any()


def test_denoising_adds_the_largest_entries_of_the_high_order_part_back() -> None:
    difference = matrix("large")
    left, values, right = np.linalg.svd(difference.numpy().astype(np.float64), full_matrices=False)
    low = (left[:, :2] * values[:2]) @ right[:2]
    high = difference.numpy() - low
    kept = int(0.05 * high.size)
    threshold = np.sort(np.abs(high).ravel())[-kept]
    expected = low + np.where(np.abs(high) >= threshold, high, 0.0)
    found = denoise(difference, variance=0.9, rank=2, high_order=0.05)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
    assert not torch.equal(found, difference)
    torch.testing.assert_close(denoise(difference, variance=0.9, rank=2, high_order=1.0), difference, rtol=0, atol=0)


def test_deft_x_selects_by_denoised_moves_and_rewinds(learn: Learn, base: Base) -> None:
    settings = {"density": 0.05, "own": {"rank": 1, "high_order": 0.02}, "evaluations": 1}
    sft, reports = learn("deft_x", **settings)
    full, _ = learn("full", evaluations=1)  # the same full phase: seed and stage settle it
    moves = {}
    for name, diff in full.diffs.items():
        move = diff.dense()
        moves[name] = move if move.dim() != 2 else denoise(move, variance=0.9, rank=1, high_order=0.02)
    every = torch.cat([move.abs().reshape(-1) for move in moves.values()])
    threshold = every.sort(descending=True).values[sft.support_size - 1]
    assert sft.support_size == int(0.05 * every.numel())
    for name, diff in sft.diffs.items():
        chosen = moves[name].abs().reshape(-1)[diff.indices.long()]
        # sums of float32 in another order differ in the last bits, so those at the very edge may be others
        assert bool((chosen >= threshold * (1 - 1e-3)).all()), name
    assert [r.stage for r in reports if r.steps == 0] == ["selection"]
    plain, _ = learn("lt_sft", density=0.05, evaluations=1)
    assert any(not torch.equal(diff.indices, sft.diffs[name].indices) for name, diff in plain.diffs.items())


def test_a_random_support_is_exactly_k_weights_of_everywhere_and_its_seeds() -> None:
    parameters = {"a": torch.zeros(300, 40), "b": torch.zeros(8000), "c": torch.zeros(7)}
    taken = {name: torch.arange(0, p.numel(), 2, dtype=torch.int32) for name, p in parameters.items()}
    draws = [
        RandomSupport().select(parameters, parameters, 4000, taken=taken, recipe=None, seed=seed)  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    ]
    for drawn in draws:
        assert sum(len(indices) for indices in drawn.values()) == 4000
        assert all(bool((indices % 2 == 1).all()) for indices in drawn.values())
        assert all(bool((indices[1:] > indices[:-1]).all()) for indices in drawn.values())
        # of 6,000 odd places in a, 4,000 of 10,003 are drawn: 2,399, give or take five standard deviations of 24.5
        assert abs(len(drawn["a"]) - 2399) < 123
        halves = (drawn["a"] < 6000).float().mean()
        assert abs(float(halves) - 0.5) < 0.06
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in parameters)
    assert not torch.equal(draws[0]["a"], draws[2]["a"])


@pytest.mark.parametrize(("method", "stages"), [("rand_sft", ["sparse"]), ("bitfit", ["sparse"]), ("full", ["full"])])
def test_a_method_has_the_phases_that_it_says(method: str, stages: list[str], learn: Learn) -> None:
    sft, reports = learn(method)
    assert list(dict.fromkeys(r.stage for r in reports if r.steps)) == stages
    assert [h["phase"] for h in sft.details["history"]] == stages
    assert ("full" in sft.details["recipe"], "sparse" in sft.details["recipe"]) == (method == "full", method != "full")


def test_bitfit_trains_every_bias_and_nothing_else(learn: Learn, base: Base) -> None:
    sft, _ = learn("bitfit")
    encoder = dict(base.token_classifier(["A"], seed=1).base_model.named_parameters())
    biases = {name: p.numel() for name, p in encoder.items() if name.endswith("bias")}
    assert {name: diff.support_size for name, diff in sft.diffs.items() if diff.support_size} == biases
    assert any("LayerNorm" in name for name in biases)
    assert sum(bool(sft.diffs[name].values.any()) for name in biases) > len(biases) / 2
    frozen, _ = learn("bitfit", freeze=("*LayerNorm*",))
    assert frozen.parameters == sum(size for name, size in biases.items() if "LayerNorm" not in name)


def test_full_is_every_maskable_weight_and_two_of_them_add_up(learn: Learn, base: Base, tmp_path: Path) -> None:
    sft, _ = learn("full")
    other, _ = learn("full", seed=2)
    assert sft.support_size == sft.maskable == parameter_roles(base.masked_lm()).size
    assert sft.density == 1.0
    model = base.token_classifier(sft.labels, seed=3)
    before = {name: p.detach().clone() for name, p in model.base_model.named_parameters()}
    with composed(model, [(sft, 1.0), (other, 1.0)], base=base.ref, heads=False):
        for name, diff in sft.diffs.items():
            expected = before[name] + diff.dense() + other.diffs[name].dense()
            torch.testing.assert_close(dict(model.base_model.named_parameters())[name], expected, rtol=0, atol=1e-7)
    assert all(torch.equal(p, before[name]) for name, p in model.base_model.named_parameters())
    folder = save_sft(sft, tmp_path / "full", learnt_by=METHODS["full"].summary)
    assert "dense" in (folder / "README.md").read_text()
    assert load_sft(folder).method == "full"


def test_a_file_of_lt_sft_does_not_name_it(learn: Learn, tmp_path: Path) -> None:
    sft, _ = learn("lt_sft")
    manifest = json.loads((save_sft(sft, tmp_path / "sft") / "sft.json").read_text())
    assert "method" not in manifest
    assert not {"rank", "variance", "high_order", "reduction"} & manifest["details"]["recipe"].keys()
    assert load_sft(tmp_path / "sft").method == "lt_sft"


@pytest.mark.parametrize("method", [name for name, how in METHODS.items() if not how.has_rounds])
def test_a_method_that_selects_nothing_passes_over_what_selection_has(method: str, tiny_project: Path) -> None:
    shared = ["recipes.pos.iterations=2", "recipes.pos.disjoint=true"]
    recipe = load_project(tiny_project, method=method, overrides=shared).recipes["pos"]
    assert (recipe.iterations, recipe.disjoint) == (1, False)
    assert load_project(tiny_project, overrides=shared).recipes["pos"].iterations == 2
    own = [f"methods.{method}.recipes.pos={{iterations: 2, disjoint: true}}"]
    with pytest.raises(ConfigError, match=r"(?s)iterations: must be 1 for .*disjoint: must be false for "):
        load_project(tiny_project, overrides=own)


def test_a_method_has_recipes_of_its_own(tiny_project: Path) -> None:
    own = ["methods.deft_x.recipes.language={size: 99, rank: 3, full: {learning_rate: 0.5}}"]
    project = load_project(tiny_project, overrides=own)
    plain, denoised = project.recipes["language"], project.with_method("deft_x").recipes["language"]
    assert (plain.size, plain.density, plain.own) == (None, 0.2, {})
    assert (denoised.size, denoised.density, denoised.own) == (99, None, {"rank": 3})
    assert denoised.full == plain.full.model_copy(update={"learning_rate": 0.5})
    assert project.with_method("deft_x").recipes["pos"] == project.recipes["pos"]
    assert project.with_method("deft_x").with_method("lt_sft") == project
    assert load_project(tiny_project, method="deft_x", overrides=own) == project.with_method("deft_x")
    assert load_project(tiny_project, overrides=[*own, "method=deft_x"]) == project.with_method("deft_x")
    with pytest.raises(ConfigError, match="there is no method 'lotsa'; allowed are lt_sft, rand_sft"):
        project.with_method("lotsa")


def test_every_mistake_about_methods_is_told_at_once(tiny_project: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_project(
            tiny_project,
            overrides=[
                "methods.lotsa.recipes.pos.density=0.1",
                "methods.full.recipes.dp.density=0.1",
                "methods.bitfit.recipes.pos.density=7",
                "methods.rand_sft.recipe.pos.density=0.1",
                "recipes.pos.batch_size=0",
                "methods.deft_x.recipes.pos.variance=2",
                "methods.lora.recipes.pos.rank=yes",
            ],
        )
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    expected = [
        "methods.lotsa: there is no such method; allowed are lt_sft, rand_sft",
        "methods.full.recipes.dp: no such target task; allowed are language, pos",
        "methods.bitfit.recipes.pos.density: Input should be less than or equal to 1, got 7",
        "methods.rand_sft.recipe: unknown key",
        "recipes.pos.batch_size: Input should be greater than or equal to 1, got 0",
        "methods.deft_x.recipes.pos.variance: Input should be less than or equal to 1, got 2",
        "methods.lora.recipes.pos.rank: yes, no, true and false are no text and no number; put text in quotes",
    ]
    for start in expected:
        assert sum(line.startswith(start) for line in lines) == 1, f"{start}\n{caught.value}"
    assert len(lines) == len(expected)
    with pytest.raises(ConfigError, match=r"recipes\.pos\.rank: lt_sft has no such setting, got 3"):
        load_project(tiny_project, overrides=["recipes.pos.rank=3"])


def described(project: Project) -> Fingerprints:
    """Fingerprints that are the same wherever the data lie."""
    sources = {str(s): "/".join(str(s).rsplit("/", 2)[-2:]) for s in project.all_sources().values()}
    return Fingerprints("e" * 64, "h" * 64, "t" * 64, sources)


def test_keys_of_lt_sft_are_what_they_were_before_there_were_methods() -> None:
    project = load_project(CONFIGS / "toy_tasks.yaml", check_files=False, data_root="/nowhere")
    keys = {product.subject: product.key for product in products(project, described(project))}
    # as ltsft made them before; another procedure (TRAINING, SCORING) makes others
    assert keys["language qae"] == "0dd2e6b012718d27c455ca8dc49f897bcd5fc4f38e36e46db2add6e9aaaba365"
    assert keys["task pos qaa seed 1"] == "59d61275134761e1cc6d32c23dc2faca38762342474ae2e3027617f4b534b816"
    assert keys["cell pos qae"] == "b4e2c965339f214bdfc03562ba9803976b3f817648ca3d06b4bf726b04db4056"


def test_every_key_of_another_method_is_its_own(tiny_project: Path) -> None:
    project = load_project(tiny_project)
    prints = described(project)
    keys: dict[str, str] = {}
    for name in METHODS:
        theirs = project.with_method(name)
        found = products(theirs, prints)
        assert not keys.keys() & {product.key for product in found}
        keys |= {product.key: name for product in found}
        assert {step.reasons for step in make_plan(theirs, prints, []).steps} == {("new",)}
        kinds = {product.kind for product in found}
        assert kinds == {"language", "task", "cell"} if METHODS[name].has_languages else {"task", "cell"}
        unused = {"full", "sparse"} - set(METHODS[name].phases)
        assert not any(unused & product.parts.get("recipe", {}).keys() for product in found)
