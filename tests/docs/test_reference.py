"""What `make docs` writes from the code has all of it: each key of a project file, each option, each exported name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.core import TyperArgument

import ltsft
from docs.generators import command_line, project_file, python_api
from ltsft import METHODS, Project, load_project

SCHEMA = Project.model_json_schema()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def keys() -> dict[str, list[str]]:
    """The cells of each row of the page of the project file, by section and key."""
    found: dict[str, list[str]] = {}
    for section in project_file.page().split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for row in re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row[1])]
            found |= {f"{path}.{row[0]}": cells for path in re.findall(r"`([^`]+)`", title)}
    return found


def test_every_key_of_a_project_file_is_told_with_type_default_limits_and_meaning(keys: dict[str, list[str]]) -> None:
    untold = [key for key, (kind, default, _, meaning) in keys.items() if not (kind and default and meaning)]

    assert not untold
    assert keys["recipes.NAME.density"][:3] == ["number", "none", "> 0, ≤ 1"]
    assert keys["recipes.NAME.sparse.learning_rate"][1] == "`5e-05`"
    assert keys["languages.CODE.script"][1] == "**required**"


def test_every_class_that_reads_a_project_file_has_its_section(keys: dict[str, list[str]]) -> None:
    in_words = {("Language", "code"), ("TargetTask", "name"), ("Recipe", "own")}  # keys, and `What only some ... have`
    fields = {(name, key) for name, at in SCHEMA["$defs"].items() for key in at["properties"] if name != "Source"}
    sections = project_file.sections(SCHEMA)

    assert {(name, key) for name, key in fields if f"{sections[name][0]}.{key}" not in keys} == in_words
    assert all(
        f"| `{key}` |" in project_file.page() for method in METHODS.values() for key in method.settings.model_fields
    )


def test_what_reading_fills_in_is_what_the_page_says(tmp_path: Path, keys: dict[str, list[str]]) -> None:
    text = """
    name: mine
    base: {id: base}
    languages: {fo: {name: Faroese, script: Latn, text: "text:fo.txt"}}
    recipes: {language: {density: 0.1}}
    """
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "second.yaml").write_text("extends: mine.yaml\nname: second\n")
    project = load_project(tmp_path / "mine.yaml", check_files=False)

    assert keys["store.folder"][1] == "`work/NAME`"
    assert project.store.folder == tmp_path / "work" / "mine"
    assert Path(project.data_root) == Path.cwd()
    assert load_project(tmp_path / "second.yaml", check_files=False).name == "second"


def test_every_command_is_told_with_its_arguments_and_options() -> None:
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", command_line.page(), re.MULTILINE | re.DOTALL))

    assert sections.keys() == command_line.commands().keys()
    for name, command in command_line.commands().items():
        options = [p.opts[0] for p in command.params if not isinstance(p, TyperArgument)]
        assert [option for option in options if f"| `{option}` |" not in sections[name]] == []
        assert [p.name for p in command.params if not p.help] == []


def test_every_exported_name_is_on_the_page_of_the_python_api() -> None:
    names = [name for names in python_api.kinds().values() for name in names]

    assert sorted([*names, "__version__"]) == list(ltsft.__all__)
    assert python_api.kinds()["Registries"] == ["METHODS", "OBJECTIVES"]
