"""The plan: what a change makes stale, and the reason that is given for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ltsft.errors import ConfigError
from ltsft.project.plan import Fingerprints, Plan, make_plan, products
from ltsft.project.project import Project, load_project

ENCODER, HEAD, TOKENIZER = "e" * 64, "h" * 64, "t" * 64
ALL = {
    *(f"language {code}" for code in ("aa", "bb", "cc")),
    "task pos aa seed 1",
    *(f"cell pos {code}" for code in ("aa", "bb", "cc")),
}
TASK_AND_CELLS = {subject for subject in ALL if not subject.startswith("language")}


@dataclass(frozen=True)
class Done:
    """A finished run, as much as the plan asks of one."""

    run_id: str
    key: str
    subject: str
    parts: dict[str, Any]


def made(project: Project, prints: Fingerprints, *, prefix: str = "run") -> list[Done]:
    """What exists after everything was run."""
    return [Done(f"{prefix} {p.subject}", p.key, p.subject, dict(p.parts)) for p in products(project, prints)]


@pytest.fixture
def project(tiny_project: Path) -> Project:
    return load_project(tiny_project)


@pytest.fixture
def prints(project: Project) -> Fingerprints:
    return Fingerprints(ENCODER, HEAD, TOKENIZER, {str(s): f"first {s}" for s in project.all_sources().values()})


@pytest.fixture
def existing(project: Project, prints: Fingerprints) -> list[Done]:
    return made(project, prints)


def changed(prints: Fingerprints, source: str) -> Fingerprints:
    """Fingerprints after the content of one file changed."""
    (name,) = [name for name in prints.sources if name.endswith(source)]
    return replace(prints, sources={**prints.sources, name: "second"})


def stale(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {step.product.subject: step.reasons for step in plan.stale}


def test_everything_is_new_at_first_and_in_order_of_need(project: Project, prints: Fingerprints) -> None:
    plan = make_plan(project, prints, [])
    assert stale(plan) == dict.fromkeys(ALL, ("new",))
    before: set[str] = set()
    for step in plan.steps:
        assert set(step.product.needs) <= before
        before.add(step.product.subject)
    assert len({step.product.key for step in plan.steps}) == len(ALL)


def test_nothing_is_stale_after_a_run(project: Project, prints: Fingerprints, existing: list[Done]) -> None:
    plan = make_plan(project, prints, existing)
    assert plan.stale == ()
    assert plan.step("cell pos bb").run_id == "run cell pos bb"
    assert plan.step("cell pos bb").product.needs == ("language bb", "task pos aa seed 1")


def test_one_changed_text_makes_that_language_and_its_cell_stale(
    project: Project, prints: Fingerprints, existing: list[Done]
) -> None:
    assert stale(make_plan(project, changed(prints, "bb.txt"), existing)) == {
        "language bb": ("text changed",),
        "cell pos bb": ("upstream changed: language bb",),
    }


def test_the_source_languages_text_makes_everything_downstream_stale(
    project: Project, prints: Fingerprints, existing: list[Done]
) -> None:
    assert stale(make_plan(project, changed(prints, "aa.txt"), existing)) == {
        "language aa": ("text changed",),
        "task pos aa seed 1": ("upstream changed: language aa",),
        "cell pos aa": ("upstream changed: language aa, task pos aa seed 1",),
        "cell pos bb": ("upstream changed: task pos aa seed 1",),
        "cell pos cc": ("upstream changed: task pos aa seed 1",),
    }


@pytest.mark.parametrize(
    ("file", "subject", "reason", "others"),
    [
        (
            "aa-train.conllu",
            "task pos aa seed 1",
            "training data changed",
            {f"cell pos {c}" for c in ("aa", "bb", "cc")},
        ),
        ("aa-dev.conllu", "task pos aa seed 1", "dev data changed", {f"cell pos {c}" for c in ("aa", "bb", "cc")}),
        ("cc-test.conllu", "cell pos cc", "test data changed", set()),
    ],
)
def test_changed_labelled_data_make_what_is_made_of_them_stale(
    file: str,
    subject: str,
    reason: str,
    others: set[str],
    project: Project,
    prints: Fingerprints,
    existing: list[Done],
) -> None:
    found = stale(make_plan(project, changed(prints, file), existing))
    assert set(found) == {subject, *others}
    assert found[subject] == (reason,)
    assert all(found[other] == ("upstream changed: task pos aa seed 1",) for other in others)


@pytest.mark.parametrize(
    ("part", "subjects", "reason"),
    [("encoder", ALL, "base changed"), ("tokenizer", ALL, "tokenizer changed"), ("head", ALL, "base changed")],
)
def test_another_base_makes_everything_stale(
    part: str, subjects: set[str], reason: str, project: Project, prints: Fingerprints, existing: list[Done]
) -> None:
    found = stale(make_plan(project, replace(prints, **{part: "f" * 64}), existing))
    assert set(found) == subjects
    for subject, reasons in found.items():
        if part == "head" and subject.startswith("task"):  # a tagger has no masked-LM head; its source SFT had one
            assert reasons == ("upstream changed: language aa",)
        else:
            assert reasons[0] == reason


Reload = Callable[..., Project]


@pytest.fixture
def reload(tiny_project: Path) -> Reload:
    return lambda *overrides: load_project(tiny_project, overrides=overrides)


def test_a_learning_rate_makes_what_is_learnt_with_it_stale(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    found = stale(make_plan(reload("recipes.pos.sparse.learning_rate=0.5"), prints, existing))
    assert set(found) == TASK_AND_CELLS
    assert found["task pos aa seed 1"] == ("recipe changed: sparse.learning_rate 0.001 -> 0.5",)
    assert found["cell pos bb"] == ("upstream changed: task pos aa seed 1",)
    languages = stale(make_plan(reload("recipes.language.full.learning_rate=0.5"), prints, existing))
    assert set(languages) == ALL
    assert languages["language bb"] == ("recipe changed: full.learning_rate 0.001 -> 0.5",)


def test_consistency_is_another_recipe_and_its_word_lists_count_by_what_is_in_them(
    reload: Reload, tiny_project: Path, prints: Fingerprints, existing: list[Done]
) -> None:
    folder = tiny_project.parent / "data"
    for name in ("here", "there"):
        (folder / f"{name}.tsv").write_text("dog\thund\n", encoding="utf-8")
    switch = "recipes.pos.consistency={{augmentations: {{code_switch: {{words: 'tsv:{}.tsv'}}}}}}"
    here, there = (reload(switch.format(name)) for name in ("here", "there"))
    lists = {str(s): "list" for project in (here, there) for s in project.recipes["pos"].consistency.sources}  # type: ignore[union-attr]
    known = replace(prints, sources={**prints.sources, **lists})
    found = stale(make_plan(here, known, existing))
    assert set(found) == TASK_AND_CELLS
    assert found["task pos aa seed 1"][0] == "bilingual word list changed"
    done = made(here, known)
    assert not stale(make_plan(there, known, done)), "where it lies is no part of the key"
    other = replace(known, sources={**known.sources, **dict.fromkeys(lists, "other words")})
    assert stale(make_plan(here, other, done))["task pos aa seed 1"] == ("bilingual word list changed",)


def test_another_seed_is_another_task_sft(reload: Reload, prints: Fingerprints, existing: list[Done]) -> None:
    found = stale(make_plan(reload("recipes.pos.seeds=[1, 2]"), prints, existing))
    cells = {f"cell pos {code}" for code in ("aa", "bb", "cc")}
    assert set(found) == {"task pos aa seed 2", *cells}
    assert found["task pos aa seed 2"] == ("new",)
    assert found["cell pos aa"] == ("upstream changed: task pos aa seed 2",)
    with_both = make_plan(reload("recipes.pos.seeds=[1, 2]"), prints, [])
    both = [Done("r", s.product.key, s.product.subject, dict(s.product.parts)) for s in with_both.steps]
    back = stale(make_plan(reload(), prints, both))
    assert set(back) == cells
    assert back["cell pos aa"] == ("upstream changed: task pos aa seed 2 (no longer needed)",)


def test_the_seed_of_the_language_sfts_is_part_of_their_recipe(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    found = stale(make_plan(reload("recipes.language.seeds=[7]"), prints, existing))
    assert found["language cc"] == ("recipe changed: seed 1 -> 7",)
    assert set(found) == ALL


def test_another_label_set_makes_the_task_sft_and_its_cells_stale(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    found = stale(make_plan(reload("target_tasks.pos.labels=[NOUN, VERB, PUNCT, ADJ]"), prints, existing))
    assert set(found) == TASK_AND_CELLS
    assert found["task pos aa seed 1"] == ("label set changed",)


def test_going_back_to_an_old_value_is_up_to_date_again(
    project: Project, prints: Fingerprints, existing: list[Done]
) -> None:
    later = made(project, changed(prints, "bb.txt"), prefix="later")
    both: Iterable[Done] = [*later, *existing]  # newest first
    assert make_plan(project, prints, both).stale == ()
    assert make_plan(project, prints, both).step("language bb").run_id == "run language bb"
    assert make_plan(project, changed(prints, "bb.txt"), both).step("language bb").run_id == "later language bb"


def test_the_reason_is_told_from_the_newest_product_of_the_subject(
    project: Project, prints: Fingerprints, existing: list[Done], reload: Reload
) -> None:
    later = made(project, changed(prints, "bb.txt"), prefix="later")
    found = stale(make_plan(reload("recipes.language.density=0.5"), changed(prints, "bb.txt"), [*later, *existing]))
    assert found["language bb"] == ("recipe changed: density 0.2 -> 0.5",)


def test_what_does_not_determine_a_product_makes_nothing_stale(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    settings = ["store.checkpoint_minutes=1", "gates.text.min_characters=7", "name=other", "languages.bb.name=Renamed"]
    assert make_plan(reload(*settings), prints, existing).stale == ()


def test_a_language_that_is_added_leaves_the_others_alone(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    added = reload("languages.dd={name: D, script: Latn, text: 'text:bb.txt'}")
    assert stale(make_plan(added, prints, existing)) == {"language dd": ("new",)}


def test_a_supervised_sft_is_a_part_of_its_own_cell_alone(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    more = reload("target_tasks.pos.supervised={bb: {train: 'conllu:bb-train.conllu'}}")
    (new,) = (s for s in more.all_sources().values() if s.location.endswith("bb-train.conllu"))
    sources = {**prints.sources, str(new): "new"}
    plan = make_plan(more, replace(prints, sources=sources), existing)
    assert set(stale(plan)) == {"task pos bb seed 1", "cell pos bb"}
    assert plan.step("task pos bb seed 1").product.is_supervised
    assert plan.step("task pos bb seed 1").product.needs == ("language bb",)


def test_a_failed_attempt_is_told_as_long_as_the_product_is_stale(
    project: Project, prints: Fingerprints, existing: list[Done]
) -> None:
    failures = {"language bb": "gate: too much Cyrillic\nline 3", "language cc": "old"}
    plan = make_plan(project, changed(prints, "bb.txt"), existing, failures=failures)
    assert plan.step("language bb").reasons == ("text changed", "the last attempt failed: gate: too much Cyrillic")
    assert plan.step("language cc").is_up_to_date
    assert plan.step("language bb").as_row()["up_to_date"] is False


def test_a_failure_without_a_message_is_told_too(project: Project, prints: Fingerprints) -> None:
    plan = make_plan(project, prints, [], failures={"language bb": ""})
    assert plan.step("language bb").reasons == ("new", "the last attempt failed: no reason was given")


def test_keys_are_the_same_wherever_the_data_lie(tiny_project: Path, prints: Fingerprints, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "data").rename(elsewhere)
    moved = load_project(tiny_project, data_root=str(elsewhere))
    sources = {name.replace(str(tmp_path / "data"), str(elsewhere)): value for name, value in prints.sources.items()}
    (tmp_path / "data").symlink_to(elsewhere)
    here = make_plan(load_project(tiny_project), prints, [])
    there = make_plan(moved, replace(prints, sources=sources), [])
    assert [step.product.key for step in here.steps] == [step.product.key for step in there.steps]


def test_a_task_sft_of_several_languages_needs_the_sft_of_each(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    joint = "target_tasks.pos.sources.bb={train: 'conllu:bb-train.conllu'}"
    project = reload(joint)
    sources = {str(s): prints.sources.get(str(s), "new") for s in project.all_sources().values()}
    prints = replace(prints, sources=sources)
    plan = make_plan(project, prints, existing)
    step = plan.step("task pos aa and bb seed 1")
    assert step.product.needs == ("language aa", "language bb")
    assert step.reasons == ("new",)
    before = made(project, prints)
    weighted = reload(joint, "target_tasks.pos.sampling.weights={aa: 1, bb: 3}")
    told = stale(make_plan(weighted, prints, before))
    assert told["task pos aa and bb seed 1"] == ("sampling of source languages changed",)
    assert not {subject for subject in told if subject.startswith("language")}


def test_how_files_are_read_is_part_of_what_is_made_of_them(
    reload: Reload, prints: Fingerprints, existing: list[Done]
) -> None:
    told = stale(make_plan(reload("target_tasks.pos.relabel={X: NOUN}"), prints, existing))
    assert "names of labels changed" in told["cell pos bb"]
    assert told["task pos aa seed 1"] == ("names of labels changed",)
    assert not {subject for subject in told if subject.startswith("language")}


def test_how_sfts_are_composed_makes_cells_stale_and_what_is_left_as_it_is_changes_no_key(
    tiny_project: Path, project: Project, prints: Fingerprints, existing: list[Done]
) -> None:
    said = load_project(tiny_project, overrides=["composition={rule: sum, weights: {language: 1, task: 1.0}}"])
    assert not make_plan(said, prints, existing).stale

    other = load_project(tiny_project, overrides=["composition.rule=ties"])
    assert stale(make_plan(other, prints, existing)) == dict.fromkeys(
        [name for name in ALL if name.startswith("cell")], ("composition rule changed",)
    )

    own = load_project(tiny_project, overrides=["composition.by_language={bb: {language: {embeddings: 0.5}}}"])
    assert stale(make_plan(own, prints, existing)) == {"cell pos bb": ("composition weights changed",)}

    disjoint = load_project(tiny_project, overrides=["recipes.pos.disjoint=true"])
    assert set(stale(make_plan(disjoint, prints, existing))) == TASK_AND_CELLS


def test_a_composition_that_cannot_be_is_refused_with_what_is_allowed(tiny_project: Path) -> None:
    composition = "composition={rule: add, weights: {language: .inf}, by_language: {xx: {}}}"
    wrong = [composition, "recipes.language.disjoint=true"]
    with pytest.raises(ConfigError) as refused:
        load_project(tiny_project, overrides=wrong)
    for line in (
        "composition.rule: there is no such composition rule; allowed are sum, ties, ties_sum, got 'add'",
        "composition.weights.language",
        "composition.by_language.xx: not in languages",
        "recipes.language.disjoint: must be false",
    ):
        assert line in str(refused.value)
