"""The project file: one YAML that describes a whole language matrix, parsed once into frozen, typed objects.

No other file reads it. Everything that is wrong is reported at once, each with its dotted path and what is allowed.
Paths of data are relative to ``data_root``, which the file, the environment variable ``LTSFT_DATA_ROOT`` or an
argument sets (the argument wins, then the environment). What the file names (``data_root``, ``store.folder``) starts
from the folder of the file; what an argument or the environment names, from the working folder. A file that says
``extends: other.yaml`` is what the other one holds, changed by what it holds itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic import ValidationError as PydanticError

from ltsft.config import (
    LT_SFT,
    NAME_RULE,
    CompositionSettings,
    Frozen,
    Gates,
    MethodRecipes,
    MissingDataError,
    Name,
    Recipe,
    Script,
    Source,
    Sources,
    TargetTask,
    WordLists,
    is_name,
)
from ltsft.errors import ConfigError
from ltsft.project.extended import moved_store, read_extended
from ltsft.project.method_recipes import own_problems, unknown_methods, work_out_recipes
from ltsft.project.tree import read_value

__all__ = [
    "BaseConfig",
    "Language",
    "Project",
    "ProjectRef",
    "Store",
    "load_project",
]

_NOT_IN_ADDRESSES = frozenset("?#%")
"""Signs of a folder that mean something else in an address of SQLite or of artifacts."""

_SUBJECT_LENGTH = 200
"""Of the name of an SFT, in a release."""

_SHOWN_MISSING = 5
"""How many missing files of a folder are told one by one."""

_NAME_ROOT = "name the folder of the data with --data-root, LTSFT_DATA_ROOT or data_root"


class BaseConfig(Frozen):
    """The pretrained model: a hub id with a revision, or a folder."""

    id: str = Field(min_length=1, description="id on the Hugging Face hub, or a folder (from data_root on)")
    revision: str | None = Field(None, description="commit on the hub; none for a folder")


class Language(Frozen):
    """A language of the matrix and its raw text."""

    code: Name
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\r\n\t]*$", description="as tables show it")
    script: Script
    text: Sources = Field(description="raw text, of the scheme text:")

    @field_validator("text")
    @classmethod
    def _plain(cls, text: tuple[Source, ...]) -> tuple[Source, ...]:
        for source in text:
            if source.scheme != "text":
                raise ValueError(f"raw text is of the scheme text:, got {source}")
        return text


class Store(Frozen):
    """Where products and checkpoints of this project are kept on this machine."""

    folder: Path = Field(description="a folder of this machine; a relative one starts from the file")
    checkpoint_minutes: float = Field(5.0, gt=0, description="the most work that a kill can cost")

    @field_validator("folder", mode="before")
    @classmethod
    def _one_place(cls, folder: Any) -> Any:
        if not isinstance(folder, str):
            return folder
        if not folder.strip():
            raise ValueError("must be a folder")
        if "://" in folder:
            raise ValueError("must be a folder of this machine; LTSFT_BUCKET and LTSFT_ARTIFACT_LOCATION are for S3")
        found = sorted(set(folder) & _NOT_IN_ADDRESSES)
        if found:
            raise ValueError(f"an address of MLflow cannot hold {' '.join(found)}; choose another folder")
        try:
            return Path(folder).expanduser().absolute()
        except RuntimeError as error:
            raise ValueError(str(error)) from error


def _suits_objective(target: TargetTask) -> TargetTask:
    from ltsft.objectives import OBJECTIVES  # loads torch, which reading a source need not

    problems = OBJECTIVES[target.objective].problems(target) if target.objective in OBJECTIVES else []
    if problems:
        raise ValueError("\n".join(problems))
    return target


class Project(Frozen):
    """A parsed project file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=60,
        description="names the experiment in MLflow and the folder in a bucket",
    )
    artificial: bool = Field(False, description="the languages are artificial; said wherever they are shown")
    data_root: str = Field(description="folder or URL that sources start from; a relative one starts from the file")
    base: BaseConfig
    languages: dict[str, Language] = Field(min_length=1, description="rows of the matrix, each with its raw text")
    unseen: tuple[str, ...] = Field((), description="languages that the base was not pre-trained on")
    target_tasks: dict[str, Annotated[TargetTask, AfterValidator(_suits_objective)]] = Field(
        {}, description="columns of the matrix, each with its labelled data"
    )
    method: str = Field(LT_SFT, description="how SFTs are learnt")
    methods: dict[str, MethodRecipes] = Field({}, description="what of `recipes` is otherwise for a method")
    recipes: dict[str, Recipe] = Field(description="how SFTs are learnt: one called language, one for each target task")
    composition: CompositionSettings = CompositionSettings()
    gates: Gates = Gates()
    word_lists: WordLists | None = Field(None, description="what tells which language a text is in")
    store: Store

    @model_validator(mode="after")
    def _suits_methods(self) -> Project:
        from ltsft.methods import METHODS

        problems = []
        for name, theirs in self.methods.items() if METHODS.keys() >= self.methods.keys() else ():
            found = [(part, line) for part, recipe in theirs.recipes.items() for line in METHODS[name].problems(recipe)]
            place = "recipes" if name == self.method else f"methods.{name}.recipes"
            problems += [f"{place}.{part}.{line}" for part, line in found]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @field_validator("recipes")
    @classmethod
    def _consistency_is_for_target_tasks(cls, recipes: dict[str, Recipe]) -> dict[str, Recipe]:
        if "language" in recipes and recipes["language"].consistency is not None:
            raise ValueError("consistency is for target tasks; take it out of recipes.language")
        return recipes

    @model_validator(mode="after")
    def _suits_several_sources(self) -> Project:
        for name, target in self.target_tasks.items():
            if len(f"task {name} {target.source_name} seed {2**32}") > _SUBJECT_LENGTH:
                raise ValueError(f"target_tasks.{name}.sources: the names of so many are too long together; use fewer")
            if len(target.sources) == 1 or name not in self.recipes:
                continue
            if target.order == "sequential" and self.recipes[name].iterations > 1:
                raise ValueError(
                    f"recipes.{name}.iterations: must be 1 with sequential source languages, for each is an iteration, "
                    f"got {self.recipes[name].iterations}"
                )
            if self.recipes[name].full.l1:
                raise ValueError(
                    f"recipes.{name}.full.l1: must be 0 with several source languages: batches are run from several "
                    f"places, got {self.recipes[name].full.l1}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Copy the keys of `languages` and `target_tasks` into what they name; work out the recipes of each method."""
        value = work_out_recipes(dict(value))
        for section, field in (("languages", "code"), ("target_tasks", "name")):
            entries = value.get(section)
            if isinstance(entries, Mapping):
                value[section] = {k: {**v, field: k} if isinstance(v, Mapping) else v for k, v in entries.items()}
        return value

    def with_method(self, name: str) -> Project:
        """Give the same project with another method: the same data and store, that method's recipes, other keys.

        Raises:
            ConfigError: there is no such method.
        """
        if name not in self.methods:
            raise ConfigError(f"there is no method {name!r}; allowed are {', '.join(self.methods)}")
        return self.model_copy(update={"method": name, "recipes": self.methods[name].recipes})

    def all_sources(self) -> dict[str, Source]:
        """Give every source by its dotted path in the project file."""
        found: dict[str, Source] = {}
        for code, language in self.languages.items():
            found |= {f"languages.{code}.text[{i}]": source for i, source in enumerate(language.text)}
        for name, target in self.target_tasks.items():
            found |= {f"target_tasks.{name}.{path}": source for path, source in target.all_sources().items()}
        for name, recipe in self.recipes.items():
            words = recipe.consistency.sources if recipe.consistency is not None else ()
            path = f"recipes.{name}.consistency.augmentations.code_switch.words"
            found |= {f"{path}[{i}]": source for i, source in enumerate(words)}
        return found


def load_project(
    path: str | Path,
    *,
    data_root: str | None = None,
    base: str | None = None,
    method: str | None = None,
    overrides: Iterable[str] = (),
    check_files: bool = True,
) -> Project:
    """Read a project file.

    Args:
        path: the YAML file.
        data_root: folder or URL that relative sources start from; replaces the file's and ``LTSFT_DATA_ROOT``.
        base: hub id (``id@revision``) or folder of the base; replaces the file's id and revision.
        method: how SFTs are learnt; replaces the file's.
        overrides: ``dotted.path=value`` each, the value in YAML: ``recipes.language.density=0.05``.
        check_files: whether local data must be there; who serves or rolls back has none.

    Returns:
        The frozen project; every relative source is resolved.

    Raises:
        ConfigError: naming everything that is wrong at once: unknown keys, values out of range, missing local files.
    """
    path = Path(path)
    raw, was = read_extended(path)
    for override in overrides:
        _apply_override(raw, override)
    if base is not None:
        identifier, _, revision = base.partition("@")
        raw["base"] = {"id": identifier, "revision": revision or None}
    if method is not None:
        raw["method"] = method
    raw["data_root"] = root = _root(data_root, raw)
    problems = _reference_problems(raw)
    try:
        project = Project.model_validate(raw, context={"data_root": root, "check_files": check_files})
        problems += moved_store(project.store.folder, was)
    except PydanticError as error:
        problems = [*_field_problems(error, root), *problems]
    if problems:
        lines = dict.fromkeys(f"  {problem}" for problem in problems)
        raise ConfigError(f"{path} has mistakes:\n" + "\n".join(lines))
    return project


def _root(given: str | None, raw: Mapping[str, Any]) -> str:
    """Choose the folder or URL of the data; what an option or a variable names starts from the working folder.

    Raises:
        ConfigError: it is no text, or names the home of somebody whom there is not.
    """
    root = given or os.environ.get("LTSFT_DATA_ROOT") or raw.get("data_root") or "."
    if not isinstance(root, str):
        raise ConfigError(f"data_root: must be a folder or a URL, got {root!r}")
    try:
        return root if "://" in root else str(Path(root).expanduser().absolute())
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"data_root: {root!r} is no folder: {error}") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, separator, value = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"an override is dotted.path=value, such as recipes.language.density=0.05; got {override!r}")
    *parents, last = dotted.split(".")
    node = raw
    for key in parents:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {dotted}: {key} is not a mapping in the project file")
        node = child
    node[last] = read_value(value, dotted)


def _reference_problems(raw: Mapping[str, Any]) -> list[str]:
    """Find names that stand for nothing. What is not of the right form is left to the models."""
    languages, targets, recipes = (_as_mapping(raw.get(name)) for name in ("languages", "target_tasks", "recipes"))
    problems = _name_problems(languages, targets)
    unseen = raw.get("unseen") or ()
    if isinstance(unseen, (list, tuple)):
        problems += [
            f"unseen: {code!r} is not in languages"
            for code in unseen
            if isinstance(code, str) and code not in languages
        ]
    seeds = _as_mapping(recipes.get("language")).get("seeds", (1,))
    if "language" not in recipes:
        problems.append("recipes.language: missing; it says how language SFTs are learnt")
    elif isinstance(seeds, (list, tuple)) and len(seeds) > 1:
        problems.append(f"recipes.language.seeds: one seed is allowed for language SFTs, got {len(seeds)}")
    floors = _as_mapping(_as_mapping(_as_mapping(raw.get("gates")).get("release")).get("min_scores"))
    problems += [
        f"gates.release.min_scores.{name}: no such target task; allowed are {', '.join(map(str, targets))}"
        for name in floors
        if name not in targets
    ]
    problems += [
        f"composition.by_language.{code}: not in languages; allowed are {', '.join(map(str, languages))}"
        for code in _as_mapping(_as_mapping(raw.get("composition")).get("by_language"))
        if code not in languages
    ]
    for part in ("names", "sisters"):
        problems += [
            f"word_lists.{part}.{code}: not in languages; allowed are {', '.join(map(str, languages))}"
            for code in _as_mapping(_as_mapping(raw.get("word_lists")).get(part))
            if code not in languages
        ]
    if _as_mapping(recipes.get("language")).get("disjoint"):
        problems.append("recipes.language.disjoint: must be false: a language SFT has no other SFT to keep out of")
    known = ["language", *map(str, targets)]
    problems += [
        f"recipes.{n}: no such target task; allowed are {', '.join(known)}" for n in recipes if str(n) not in known
    ]
    problems += [*unknown_methods(raw, known), *own_problems(dict(raw))]
    problems += _unknown_objectives(targets)
    problems += _unknown_rule(_as_mapping(raw.get("composition")).get("rule"))
    for name, target in targets.items():
        if name not in recipes:
            problems.append(f"recipes.{name}: missing; it says how the SFT of target task {name} is learnt")
        for section in ("sources", "test", "dev", "supervised"):
            problems += [
                f"target_tasks.{name}.{section}.{code}: not in languages; allowed are {', '.join(map(str, languages))}"
                for code in _as_mapping(_as_mapping(target).get(section))
                if code not in languages
            ]
    return problems


def _name_problems(languages: Mapping[Any, Any], targets: Mapping[Any, Any]) -> list[str]:
    """Find names that do not work everywhere, and two that some folders and databases take for one."""
    problems = []
    for section, names in (("languages", languages), ("target_tasks", targets)):
        first: dict[str, str] = {}
        for name in names:
            if not is_name(name):
                problems.append(f"{section}: {name!r} is no name; allowed are {NAME_RULE}")
            elif name.lower() in first:
                problems.append(f"{section}: {name} and {first[name.lower()]} differ in capitals alone; rename one")
            first.setdefault(str(name).lower(), str(name))
    if "language" in targets:
        problems.append("target_tasks: `language` is the recipe of language SFTs; choose another name")
    return problems


def _unknown_objectives(targets: Mapping[Any, Any]) -> list[str]:
    from ltsft.objectives import OBJECTIVES

    named = {name: _as_mapping(target).get("objective") for name, target in targets.items()}
    return [
        f"target_tasks.{name}.objective: there is no such objective; allowed are {', '.join(OBJECTIVES)}, got {given!r}"
        for name, given in named.items()
        if isinstance(given, str) and given not in OBJECTIVES
    ]


def _unknown_rule(given: Any) -> list[str]:
    from ltsft.composition import RULES

    if not isinstance(given, str) or given in RULES:
        return []
    return [f"composition.rule: there is no such composition rule; allowed are {', '.join(RULES)}, got {given!r}"]


def _as_mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _field_problems(error: PydanticError, root: str) -> list[str]:
    """Say what is wrong, in lines; a wrong folder of the data is told in a few, and not in one for each file."""
    found = error.errors(include_url=False)
    missing = [item for item in found if _is_missing_below(item, root)]
    lines = []
    if len(missing) > 1 and not Path(root).is_dir():
        found = [item for item in found if item not in missing]
        lines = [f"data_root: there is no folder {root}, in which {len(missing)} files should be; {_NAME_ROOT}"]
    elif len(missing) > _SHOWN_MISSING:
        found = [item for item in found if item not in missing[_SHOWN_MISSING:]]
        lines = [f"data_root: {root} lacks {len(missing)} files, of which some are below; {_NAME_ROOT}"]
    for item in found:
        message = item["msg"].removeprefix("Value error, ")
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        got = item.get("input")
        shown = f", got {got!r}" if isinstance(got, (str, int, float)) and item["type"] != "extra_forbidden" else ""
        lines += [f"{where + ': ' if where else ''}{line}{shown}" for line in message.splitlines()]
    return [line for line in lines if not (line.startswith("methods.") and line.split(".", 2)[-1] in lines)]


def _is_missing_below(item: Any, root: str) -> bool:
    cause = item.get("ctx", {}).get("error")
    return isinstance(cause, MissingDataError) and cause.location.startswith(f"{root}/")


class ProjectRef(Frozen):
    """How to read a project file again: what a flow run gets as its parameter."""

    file: str
    data_root: str | None = None
    base: str | None = None
    method: str | None = None
    overrides: tuple[str, ...] = ()

    def load(self, *, check_files: bool = True) -> Project:
        """Read the project file.

        Args:
            check_files: whether local data must be there.

        Raises:
            ConfigError: naming everything that is wrong at once.
        """
        return load_project(
            self.file,
            data_root=self.data_root,
            base=self.base,
            method=self.method,
            overrides=self.overrides,
            check_files=check_files,
        )
