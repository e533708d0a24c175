"""Whatever a project file holds is read, or told in lines that name the place; never a traceback."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltsft.errors import ConfigError
from ltsft.project.project import Project, load_project

PHASE = {"max_steps": 12, "learning_rate": 1e-3}
RECIPE = {"density": 0.2, "full": PHASE, "sparse": PHASE, "seeds": [1]}
SOUND: dict[str, Any] = {
    "name": "small",
    "artificial": False,
    "data_root": "data",
    "base": {"id": "base", "revision": None},
    "languages": {"fo": {"name": "Faroese", "script": "Latn", "text": ["text:fo.txt"]}},
    "unseen": ["fo"],
    "target_tasks": {
        "pos": {
            "objective": "pos",
            "labels": ["NOUN", "VERB"],
            "relabel": {"ADJ": "NOUN"},
            "sources": {"fo": {"train": "conllu:fo.conllu"}},
            "sampling": {"temperature": 1.0},
            "test": {"fo": {"file": "conllu:fo.conllu", "origin": "https://example.org/fo.conllu"}},
        }
    },
    "method": "lt_sft",
    "methods": {"lora": {"recipes": {"pos": {"full": PHASE}}}},
    "recipes": {"language": {**RECIPE, "freeze": ["x.*"]}, "pos": RECIPE},
    "composition": {"rule": "sum", "weights": {"language": 1.0}, "by_language": {"fo": {"task": {"layer.0": 0.5}}}},
    "gates": {"text": {"min_lines": 3}, "release": {"min_scores": {"pos": 0.2}, "confidence": 0.9}},
    "store": {"folder": "store", "checkpoint_minutes": 5},
}
PLACES = [
    *("", "name", "artificial", "data_root", "base", "base.id", "languages", "languages.fo", "languages.fo.name"),
    *("languages.fo.script", "languages.fo.text", "unseen", "target_tasks", "target_tasks.pos", "method", "methods"),
    *("target_tasks.pos.objective", "target_tasks.pos.labels", "target_tasks.pos.relabel", "target_tasks.pos.sources"),
    *("target_tasks.pos.sources.fo", "target_tasks.pos.sources.fo.train", "target_tasks.pos.sampling"),
    *("target_tasks.pos.test", "target_tasks.pos.test.fo", "target_tasks.pos.test.fo.origin", "methods.lora"),
    *("methods.lora.recipes", "methods.lora.recipes.pos", "recipes", "recipes.language", "recipes.pos"),
    *("recipes.language.density", "recipes.language.freeze", "recipes.pos.seeds", "recipes.pos.full"),
    *("recipes.pos.full.max_steps", "recipes.pos.full.learning_rate", "composition", "composition.rule"),
    *("composition.weights", "composition.weights.language", "composition.by_language", "composition.by_language.fo"),
    *("gates", "gates.text", "gates.text.min_lines", "gates.release.min_scores", "gates.release.confidence"),
    *("store", "store.folder", "store.checkpoint_minutes", "target_tasks.pos.columns", "target_tasks.pos.order"),
]


def read(content: bytes | str, folder: Path, **options: Any) -> Project:
    file = folder / "project.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_project(file, check_files=False, **options)


def replaced(place: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(SOUND)
    node, keys = tree, place.split(".")
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return tree


def refused(content: bytes | str, folder: Path, **options: Any) -> list[str]:
    """The lines of what is wrong, each with its place; fails where it is nothing, or no error of ours."""
    with pytest.raises(ConfigError) as caught:
        read(content, folder, **options)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in lines[1:]] if len(lines) > 1 else lines


FOUND: list[tuple[str, bytes | str, str]] = [
    ("a template", "name: {{ x }}", "unhashable key"),
    ("a date that there is not", "name: 2024-13-45", "is no valid timestamp"),
    ("a date", yaml.safe_dump(replaced("data_root", 0)).replace("data_root: 0", "data_root: 2024-01-01"),
     "data_root: a date cannot be here (datetime.date(2024, 1, 1)); put it in quotes"),
    ("a number for the data", yaml.safe_dump(replaced("data_root", 3)), "data_root: must be a folder or a URL, got 3"),
    ("nobody's home", yaml.safe_dump(replaced("data_root", "~nosuch/data")), "data_root: '~nosuch/data' is no folder"),
    ("nobody's store", yaml.safe_dump(replaced("store", {"folder": "~nosuch"})), "store.folder: "),
    ("an anchor in itself", "name: &a [*a]", "name[0]: an anchor stands within itself"),
    ("a mapping in itself", "base: &a {id: *a}", "base.id: an anchor stands within itself"),
    ("nesting without end", "[" * 5000, "nested without end"),
    ("nesting that ends", "name: " + "[" * 60 + "]" * 60, "nested more than 50 levels deep"),
    ("laughs", "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
     "the file stands for more than 200000 values"),
    ("labels that YAML reads", yaml.safe_dump(replaced("target_tasks.pos.labels", [False, True])),
     "target_tasks.pos.labels: yes, no, true and false are no text and no number; put text in quotes"),
    ("a language that YAML reads", "languages: {no: {}}", "languages: the name False is not text; put it in quotes"),
    ("a name that is a list", "? [a]\n: 1", "unhashable key"),
    ("a name that is nothing", "name: {null: 1}", "name: the name None is not text"),
    ("a name twice", "a: 1\na: 2", "'a' stands twice in a mapping, first in line 1 and again, line 2, column 1"),
    ("bytes", "name: !!binary aGk=", "name: a bytes cannot be here"),
    ("broken bytes", "name: !!binary \"a\"", "is not readable YAML: failed to decode base64"),
    ("a set", "name: !!set {a, b}", "name: a set cannot be here"),
    ("pairs", "name: !!pairs [a: 1]", "name[0]: a tuple cannot be here"),
    ("a Python object", "name: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    ("a long number", "name: " + "1" * 5000, "is no valid int"),
    ("a large number", yaml.safe_dump(replaced("recipes.pos.full.max_steps", 2**70)), "recipes.pos.full.max_steps: "),
    ("no number", yaml.safe_dump(replaced("recipes.pos.density", float("nan"))), "recipes.pos.density: "),
    ("an endless rate", yaml.safe_dump(replaced("recipes.pos.full.learning_rate", float("inf"))),
     "recipes.pos.full.learning_rate: "),
    ("no number for a name", "name: .nan", "name: "),
    ("yes for a number", yaml.safe_dump(replaced("recipes.pos.density", True)),
     "recipes.pos.density: yes, no, true and false are no text and no number"),
    ("yes for a seed", yaml.safe_dump(replaced("recipes.pos.seeds", [True])), "recipes.pos.seeds: yes, no, true"),
    ("a seed below 0", yaml.safe_dump(replaced("recipes.pos.seeds", [-1])), "recipes.pos.seeds[0]: "),
    ("half a surrogate pair", 'name: "\\ud800"', "name: half a surrogate pair"),
    ("a zero byte in a path", 'data_root: "a\\0b"', "data_root: control characters cannot be here"),
    ("a long path", yaml.safe_dump(replaced("data_root", "x" * 5000)), "project.yaml has mistakes"),
    ("a list of what is unseen", yaml.safe_dump(replaced("unseen", [["fo"], {"a": 1}])), "unseen[0]: "),
    ("Latin-1", "name: f\u00f8".encode("latin-1"), "project.yaml:1: byte 0xf8 is not UTF-8"),
    ("UTF-16", "name: fo".encode("utf-16"), "is not UTF-8"),
    ("two documents", "a: 1\n---\nb: 2", "but found another document"),
    ("a tab", "a:\n\t- b", "found character '\\t' that cannot start any token"),
    ("a language that trains and cannot be scored", yaml.safe_dump(replaced("languages", {
        "sr@latin": {"name": "Serbian", "script": "Latn", "text": "text:a"}})), "languages: 'sr@latin' is no name"),
    ("a target task that is a path", yaml.safe_dump(replaced("target_tasks", {"a/b": {}})), "target_tasks: 'a/b'"),
    ("a target task that is a recipe", yaml.safe_dump(replaced("target_tasks", {"language": {}})), "`language` is"),
    ("capitals alone", yaml.safe_dump(replaced("languages", {"fo": {}, "FO": {}})), "fo and FO differ in capitals"),
    ("a place that no address can hold", yaml.safe_dump(replaced("store", {"folder": "a?b"})), "an address of MLflow"),
    ("a store in a bucket", yaml.safe_dump(replaced("store", {"folder": "s3://a/b"})), "store.folder: must be"),
]  # fmt: skip
"""What was once a traceback, or read as something else."""


@pytest.mark.parametrize(("content", "told"), [case[1:] for case in FOUND], ids=[case[0] for case in FOUND])
def test_what_was_once_found_is_told_with_its_place(content: bytes | str, told: str, tmp_path: Path) -> None:
    if told == "project.yaml has mistakes":  # nothing looks at the folder when no file is looked for
        file = tmp_path / "project.yaml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(ConfigError, match=told):
            load_project(file)
        return
    lines = refused(content, tmp_path)
    assert any(told in line for line in lines), lines


def test_a_file_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path) -> None:
    for path, told in (
        (tmp_path, f"{tmp_path} is a folder; name the project file in it"),
        (tmp_path / "none", "there is no project file"),
        (tmp_path / "a\0b", "cannot be read: embedded null byte"),
        (tmp_path / ("x" * 5000), "File name too long"),
        (Path("/dev/zero"), "larger than 10 MiB"),
        (Path("/dev/null"), "must hold a mapping"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_project(path)
        assert told in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_the_sound_file_of_these_tests_is_sound(tmp_path: Path) -> None:
    project = read(yaml.safe_dump(SOUND, sort_keys=False), tmp_path)
    assert project.store.folder == tmp_path / "store"
    assert project.data_root == str(tmp_path / "data")
    for place in PLACES[1:]:
        replaced(place, None)  # each place is one of the file


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "~", "~nosuch", "a?b", "text:", "hf:x?split=a&b", "s3://[", "http://[::1", "é", "x" * 300]),
    st.dates(),
    st.datetimes(),
    st.binary(max_size=4),
    st.sampled_from([10**400, -(2**80), 1e308, "\0", "\ud800", "a\nb", "NO", "2024-13-45"]),
)
TREES = st.recursive(
    ODD,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from([p.rpartition(".")[2] for p in PLACES]), ODD), inside, max_size=3),
    ),
    max_leaves=6,
)
SIGNS = st.text(st.sampled_from("ab01 \n:-[]{}&*!|>'\"%@`#,?~.\té\ufeff\u2028\0"), max_size=60)


def dumped(tree: Any) -> bytes:
    try:
        return yaml.dump(tree, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=False).encode()
    except (UnicodeEncodeError, yaml.YAMLError):
        return b"name: [unwritable"


def check_content(content: bytes, folder: Path) -> None:
    try:
        read(content, folder)
    except ConfigError as error:
        lines = str(error).splitlines()
    else:
        lines = [str(folder)]
    assert lines[0].startswith((str(folder), "data_root: ")), lines
    assert len(lines) == 1 or all(re.match(r"  .*: |  and more", line) for line in lines[1:]), lines
    "".join(lines).encode()  # a terminal can show it


def check_override(place: str, text: str, folder: Path) -> None:
    file = folder / "project.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(SOUND, sort_keys=False))
    try:
        load_project(file, overrides=[f"{place}={text}"], check_files=False)
    except ConfigError as error:
        str(error).encode()  # a terminal can show it


def fuzz(examples: int, check: Callable[..., None], folder: Path, **strategies: Any) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(**strategies)
    def holds(**values: Any) -> None:
        check(folder=folder, **values)

    holds()


KINDS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "a value in place": (check_content, {"content": st.builds(replaced, st.sampled_from(PLACES), TREES).map(dumped)}),
    "any tree": (check_content, {"content": TREES.map(dumped)}),
    "any signs": (check_content, {"content": SIGNS.map(lambda text: text.encode())}),
    "any bytes": (check_content, {"content": st.binary(max_size=60)}),
    "an override": (check_override, {
        "place": st.one_of(st.sampled_from(PLACES), SIGNS), "text": st.one_of(SIGNS, st.text(max_size=20)),
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_any_project_file_is_read_or_told_with_its_place(kind: str, tmp_path: Path) -> None:
    check, strategies = KINDS[kind]
    fuzz(60, check, tmp_path, **strategies)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_any_project_file_is_read_or_told_with_its_place_for_minutes(kind: str, tmp_path: Path) -> None:
    check, strategies = KINDS[kind]
    fuzz(4000, check, tmp_path, **strategies)


def test_folders_of_the_file_start_from_it_and_those_of_the_command_line_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LTSFT_DATA_ROOT", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    content = yaml.safe_dump(SOUND, sort_keys=False)
    (tmp_path / "project").mkdir()
    file = tmp_path / "project"
    there = read(content, file)
    assert (there.data_root, there.store.folder) == (str(file / "data"), file / "store")
    given = ["store.folder=mine", "data_root=ours"]
    here = read(content, file, overrides=given)
    assert (here.data_root, here.store.folder) == (str(Path.cwd() / "ours"), Path.cwd() / "mine")
    unsaid = yaml.safe_dump({name: value for name, value in SOUND.items() if name != "store"})
    assert read(unsaid, file).store.folder == file / "work" / "small"


def test_a_record_in_the_old_place_is_told_and_nothing_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "store").mkdir()
    content = yaml.safe_dump(SOUND, sort_keys=False)
    read(content, tmp_path / "configs")
    (tmp_path / "store" / "mlflow.db").touch()
    (line,) = refused(content, tmp_path / "configs")
    old, new = tmp_path / "store", tmp_path / "configs" / "store"
    assert line.endswith(f"move it (mv {old} {new}) or name it (--set store.folder={old})")
    assert read(content, tmp_path / "configs", overrides=[f"store.folder={old}"]).store.folder == old
    old.rename(new)
    assert read(content, tmp_path / "configs").store.folder == new
