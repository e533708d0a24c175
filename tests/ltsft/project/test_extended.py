"""A project file that extends another one: what is merged, where folders start, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltsft.errors import ConfigError
from ltsft.project.extended import read_extended

PARENT = """
name: parent
data_root: data
languages: {aa: {name: A}, bb: {name: B}}
unseen: [bb]
recipes:
  language: {density: 0.1, seeds: [1, 2]}
  pos: {density: 0.2}
store: {folder: work/parent, checkpoint_minutes: 7}
"""


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def read(tmp_path: Path, child: str) -> dict[str, object]:
    write(tmp_path / "above", "parent.yaml", PARENT)
    return read_extended(write(tmp_path / "below", "child.yaml", f"extends: ../above/parent.yaml\n{child}"))[0]


def test_mappings_are_merged_and_everything_else_takes_the_place_of_what_was(tmp_path: Path) -> None:
    raw = read(tmp_path, "name: child\nunseen: []\nrecipes: {language: {seeds: [3]}}\nlanguages: {cc: {name: C}}")
    assert raw["name"] == "child"
    assert raw["unseen"] == []
    assert raw["recipes"] == {"language": {"density": 0.1, "seeds": [3]}, "pos": {"density": 0.2}}
    assert list(raw["languages"]) == ["aa", "bb", "cc"]  # type: ignore[call-overload]
    assert "extends" not in raw


def test_nothing_takes_a_key_away(tmp_path: Path) -> None:
    raw = read(tmp_path, "recipes: {pos: null, dp: {density: null}}\nunseen:")
    assert raw["recipes"] == {"language": {"density": 0.1, "seeds": [1, 2]}, "dp": {}}
    assert "unseen" not in raw


def test_a_folder_starts_from_the_file_that_names_it(tmp_path: Path) -> None:
    raw = read(tmp_path, "name: child")
    assert raw["data_root"] == str(tmp_path / "above/data")
    assert raw["store"] == {"folder": str(tmp_path / "above/work/parent"), "checkpoint_minutes": 7}
    raw = read(tmp_path, "data_root: mine\nstore: {folder: work/child}")
    assert raw["data_root"] == str(tmp_path / "below/mine")
    assert raw["store"] == {"folder": str(tmp_path / "below/work/child"), "checkpoint_minutes": 7}
    raw = read(tmp_path, "data_root: mine\nstore: {checkpoint_minutes: 1}")
    assert raw["data_root"] == str(tmp_path / "below/mine")
    assert raw["store"] == {"folder": str(tmp_path / "above/work/parent"), "checkpoint_minutes": 1}


def test_a_file_may_extend_one_that_extends_another(tmp_path: Path) -> None:
    write(tmp_path, "first.yaml", "name: first\na: {x: 1, y: 1}")
    write(tmp_path, "second.yaml", "extends: first.yaml\nname: second\na: {y: 2}")
    raw, _ = read_extended(write(tmp_path, "third.yaml", "extends: ./second.yaml\na: {z: 3}"))
    assert (raw["name"], raw["a"]) == ("second", {"x": 1, "y": 2, "z": 3})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: child.yaml", "extends itself"),
        ("extends: other.yaml", "there is no project file"),
        ("extends: broken.yaml", r"broken\.yaml is not readable YAML"),
        ("extends: [a.yaml]", "must be the path of another project file"),
        ("extends: https://example.org/a.yaml", "must be the path of another project file"),
        ("extends: ''", "must be the path of another project file"),
    ],
)
def test_what_cannot_be_extended_is_told_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path, "broken.yaml", "a: [")
    with pytest.raises(ConfigError, match=told):
        read_extended(write(tmp_path, "child.yaml", text))


def test_a_circle_is_told_with_the_files_that_close_it(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml extends itself, by way of .*a\.yaml, .*b\.yaml"):
        read_extended(write(tmp_path, "b.yaml", "extends: a.yaml").parent / "a.yaml")
