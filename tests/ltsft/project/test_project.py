"""The project file: every mistake at once, each with its dotted path, and who wins over whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ltsft.config.recipe import Recipe
from ltsft.errors import ConfigError
from ltsft.project.project import ProjectRef, load_project

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def mended(file: Path, **sections: Any) -> Path:
    """Change sections of a project file."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**content, **sections}, sort_keys=False), encoding="utf-8")
    return file


def mistakes(file: Path, *overrides: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_project(file, overrides=overrides, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LTSFT_DATA_ROOT", raising=False)


def test_a_project_file_becomes_frozen_typed_objects(tiny_project: Path) -> None:
    project = load_project(tiny_project)
    assert list(project.languages) == ["aa", "bb", "cc"]
    assert project.languages["bb"].code == "bb"
    assert project.target_tasks["pos"].source_language == "aa"
    (text,) = project.languages["aa"].text
    assert Path(text.location).is_file()
    assert str(text) == f"text:{text.location}"
    with pytest.raises(ValidationError):
        project.name = "other"  # type: ignore[misc]
    assert ProjectRef(file=str(tiny_project)).load() == project


def test_a_wrong_folder_of_the_data_is_told_in_a_few_lines(tiny_project: Path, tmp_path: Path) -> None:
    given = [f"languages.aa.text=text:{tmp_path}/elsewhere.txt"]  # not below the folder: told for itself
    with pytest.raises(ConfigError) as gone:
        load_project(tiny_project, data_root=str(tmp_path / "gone"), overrides=given)
    told = str(gone.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in told] == ["data_root", "languages.aa.text[0]"]
    assert f"there is no folder {tmp_path}/gone, in which 7 files should be; name the folder of the data" in told[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as empty:
        load_project(tiny_project, data_root=str(tmp_path / "empty"))
    told = str(empty.value).splitlines()[1:]
    assert f"data_root: {tmp_path}/empty lacks 8 files, of which some are below" in told[0]
    assert len(told) == 1 + 5


def test_every_mistake_is_told_at_once_with_its_dotted_path(tiny_project: Path) -> None:
    told = mistakes(
        tiny_project,
        "recipes.language.densty=0.5",
        "recipes.pos.density=1.5",
        "recipes.pos.full.learning_rate=-1",
        "languages.bb.text=text:nowhere.txt",
        "languages.cc.script=Latin",
        "languages.aa.script=Xxxx",
        "languages.bb.script=Aran",
        "target_tasks.pos.test.zz=conllu:aa-test.conllu",
        "target_tasks.pos.objective=poss",
        "unseen=[yy]",
        "gates.text.min_charcters=3",
    )
    lines = [line.strip() for line in told.splitlines()[1:]]
    expected = [
        "recipes.language.densty: unknown key",
        "recipes.pos.density: Input should be less than or equal to 1, got 1.5",
        "recipes.pos.full.learning_rate: Input should be greater than 0, got -1",
        f"languages.bb.text[0]: there is no file {tiny_project.parent}/data/nowhere.txt; mend the path or set",
        "languages.cc.script: must be an ISO 15924 code that Unicode knows, such as Latn, Cyrl or Arab; is it Latn?",
        "languages.aa.script: must be an ISO 15924 code that Unicode knows",
        "target_tasks.pos.test.zz: not in languages; allowed are aa, bb, cc",
        "target_tasks.pos.objective: there is no such objective; allowed are pos, dp, ner",
        "unseen: 'yy' is not in languages",
        "gates.text.min_charcters: unknown key",
    ]
    for start in expected:
        assert sum(line.startswith(start) for line in lines) == 1, f"{start}\n{told}"
    assert len(lines) == len(expected)
    assert told.startswith(f"{tiny_project} has mistakes:")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipes.pos.size=10", "recipes.pos: give either density"),
        ("recipes.pos.batch_size=7", None),
        ("recipes.pos.accumulation=3", r"recipes.pos: batch_size (8) must be a multiple of accumulation (3)"),
        ("recipes.pos.seeds=[1, 1]", "recipes.pos: seeds must be distinct"),
        ("recipes.language.seeds=[1, 2]", "recipes.language.seeds: one seed is allowed for language SFTs, got 2"),
        ("recipes.pos.full.min_steps=13", "recipes.pos.full: max_steps (12) must be at least min_steps (13)"),
        ("recipes.ner={density: 0.1}", "recipes.ner: no such target task; allowed are language, pos"),
        (
            "target_tasks.pos.columns={text: t}",
            "target_tasks.pos: columns: objective pos reads formats that say which column is which; leave them out",
        ),
        ("target_tasks.pos.labels=[]", "target_tasks.pos: labels: objective pos needs 2 or more, got 0"),
        ("target_tasks.pos.objective=qa", "target_tasks.pos: labels: objective qa has none; leave them out"),
        ("target_tasks.pos.objective=3", "target_tasks.pos.objective: Input should be a valid string, got 3"),
        ("target_tasks.pos.labels=[A, A]", "target_tasks.pos.labels: labels must be distinct"),
        ("languages.bb.text=bb.txt", "languages.bb.text[0]: a source is scheme:location with one of the schemes text:"),
        ("languages.bb.text={file: 'text:bb.txt', orign: x}", "languages.bb.text[0]: unknown key 'orign'"),
        ("languages.bb.text=[]", "languages.bb.text: "),
        ("unseen=[xx]", "unseen: 'xx' is not in languages"),
        ("target_tasks.pos.sources.bb={train: 'conllu:bb-train.conllu'}", None),
        (
            "target_tasks.pos.sampling.weights={bb: 1.0}",
            "sampling.weights: give one for each source language (aa), got bb",
        ),
        ("target_tasks.pos.order=sequential", "order: sequential is for two source languages or more"),
        ("languages.no={name: N, script: Latn, text: 'text:bb.txt'}", None),
        (
            "languages={no: {name: N, script: Latn, text: 'text:bb.txt'}}",
            "the name False is not text; put it in quotes",
        ),
    ],
)
def test_a_mistake_says_what_is_allowed(override: str, message: str | None, tiny_project: Path) -> None:
    if message is None:
        load_project(tiny_project, overrides=[override])
    else:
        assert message in mistakes(tiny_project, override)


def test_a_missing_recipe_is_told(tiny_project: Path) -> None:
    told = mistakes(mended(tiny_project, recipes={}))
    assert "recipes.language: missing" in told
    assert "recipes.pos: missing" in told


@pytest.mark.parametrize("section", ["languages", "target_tasks", "recipes", "unseen", "base", "gates"])
@pytest.mark.parametrize("value", [None, 3, "text", ["list"], {"x": None}, {"x": {"test": 4}}])
def test_a_section_of_another_form_is_a_mistake_and_not_a_crash(section: str, value: Any, tiny_project: Path) -> None:
    assert section in mistakes(mended(tiny_project, **{section: value}))


def test_a_missing_file_with_an_origin_is_not_a_mistake(tiny_project: Path) -> None:
    text = {"file": "text:later.txt", "origin": "https://example.org/later.txt"}
    content = yaml.safe_load(tiny_project.read_text(encoding="utf-8"))
    content["languages"]["bb"]["text"] = [text, "text:https://example.org/more.txt"]
    first, second = load_project(mended(tiny_project, languages=content["languages"])).languages["bb"].text
    assert first.origin == "https://example.org/later.txt"
    assert first.location == str(tiny_project.parent / "data" / "later.txt")
    assert second.is_remote


def test_the_argument_wins_over_the_environment_and_that_over_the_file(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {name: tmp_path / name for name in ("argument", "environment")}
    for root in roots.values():
        root.symlink_to(tmp_path / "data")
    assert load_project(tiny_project).data_root == str(tmp_path / "data")
    monkeypatch.setenv("LTSFT_DATA_ROOT", str(roots["environment"]))
    assert load_project(tiny_project).data_root == str(roots["environment"])
    project = load_project(tiny_project, data_root=str(roots["argument"]))
    assert project.data_root == str(roots["argument"])
    assert all(s.location.startswith(str(roots["argument"])) for s in project.all_sources().values())


def test_a_data_root_may_be_a_url(tiny_project: Path) -> None:
    project = load_project(tiny_project, data_root="s3://bucket/data/")
    assert project.languages["aa"].text[0].location == "s3://bucket/data/aa.txt"
    assert project.data_root == "s3://bucket/data/"


def test_a_relative_data_root_starts_where_the_command_is_run(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_project.parent)
    assert load_project(tiny_project, data_root="data").data_root == str(tiny_project.parent / "data")


def test_the_base_and_single_values_can_be_overridden(tiny_project: Path) -> None:
    project = load_project(
        tiny_project, base="org/name@v2", overrides=["recipes.pos.density=0.5", "store.checkpoint_minutes=1"]
    )
    assert (project.base.id, project.base.revision) == ("org/name", "v2")
    assert load_project(tiny_project, base="folder").base.revision is None
    assert (project.recipes["pos"].density, project.recipes["language"].density) == (0.5, 0.2)
    assert project.store.checkpoint_minutes == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("density", "an override is dotted.path=value"),
        ("=3", "an override is dotted.path=value"),
        ("name.x=3", "cannot set name.x: name is not a mapping"),
        ("recipes.pos.density=[", "recipes.pos.density"),
    ],
)
def test_an_override_that_cannot_be_set_is_refused(override: str, message: str, tiny_project: Path) -> None:
    assert message in mistakes(tiny_project, override)


def test_a_key_that_stands_twice_is_a_mistake_and_one_that_replaces_a_merged_key_is_not(tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    file.write_text("languages:\n  fo: {name: Faroese}\n  gv: {name: Manx}\n  fo: {name: Faroe}\n", encoding="utf-8")
    message = mistakes(file)
    assert "'fo' stands twice in a mapping" in message
    assert "line 2" in message
    assert "line 4" in message
    file.write_text(
        "recipes:\n  a: &a {seeds: [1]}\n  b: &b {<<: *a, seeds: [2]}\n  c: {<<: *b, seeds: [3]}\n", "utf-8"
    )
    assert "in a mapping" not in mistakes(file)


def test_an_override_changes_one_of_the_places_that_a_yaml_anchor_fills(tiny_project: Path) -> None:
    assert "*id" in tiny_project.read_text(encoding="utf-8")
    recipes = load_project(tiny_project, overrides=["recipes.pos.full.learning_rate=0.5"]).recipes
    assert recipes["pos"].full.learning_rate == 0.5
    rates = [recipes["pos"].sparse, recipes["language"].full, recipes["language"].sparse]
    assert [phase.learning_rate for phase in rates] == [1e-3] * 3


def test_a_file_that_is_no_project_is_refused(tmp_path: Path) -> None:
    assert "there is no project file" in mistakes(tmp_path / "none.yaml")
    for content in ("[1, 2]", "", "a: [", "\x00"):
        (tmp_path / "bad.yaml").write_text(content, encoding="utf-8")
        assert "bad.yaml" in mistakes(tmp_path / "bad.yaml")


def test_the_recipe_of_a_seed_holds_everything_but_the_other_seeds() -> None:
    recipe = Recipe(density=0.5, seeds=(3, 4))
    values = recipe.of_seed(4)
    assert values["seed"] == 4
    added = {"own", "disjoint", "consistency"}
    neutral = {"values", "processes", "nodes", "head", *added}  # what is left as it is changes no key
    assert set(values) == {*Recipe.model_fields, "seed"} - {"seeds"} - neutral
    head = {"min_steps": 5, "learning_rate": 1e-3}
    changed = Recipe.model_validate(
        {"density": 0.5, "values": "bfloat16", "processes": 2, "head": head, "disjoint": True}
    ).of_seed(4)
    assert (changed["values"], changed["processes"], changed["head"]["min_steps"]) == ("bfloat16", 2, 5)
    assert changed["disjoint"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_project_in_configs_is_parsed(config: Path) -> None:
    assert load_project(config, data_root="s3://elsewhere").languages  # no local file is looked for
    first = config.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("#"), "the first lines say what the project is and the command that runs it"
