"""The project file: one YAML that describes a whole language matrix, parsed once into frozen, typed objects.

No other file reads it. Everything that is wrong is reported at once, each with its dotted path and what is allowed.
Paths of data are relative to ``data_root``, which the file, the environment variable ``LTSFT_DATA_ROOT`` or an
argument sets (the argument wins, then the environment).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic import ValidationError as PydanticError

from ltsft.composition import CompositionSettings
from ltsft.consistency import Consistency
from ltsft.errors import ConfigError
from ltsft.gates import Gates
from ltsft.method_recipes import LT_SFT, unknown_methods, work_out_recipes
from ltsft.named_source import Frozen, Sources, as_list
from ltsft.named_source import Source as Source  # it is part of what this module offers

Precision = Literal["fp32", "bf16", "fp16"]


class BaseConfig(Frozen):
    """The pretrained model: a hub id with a revision, or a folder."""

    id: str = Field(min_length=1)
    revision: str | None = None


class Language(Frozen):
    """A language of the matrix and its raw text."""

    code: str
    name: str
    script: str = Field(pattern=r"^[A-Z][a-z]{3}$", description="ISO 15924, such as Latn")
    text: Sources

    @field_validator("text")
    @classmethod
    def _plain(cls, text: tuple[Source, ...]) -> tuple[Source, ...]:
        for source in text:
            if source.scheme != "text":
                raise ValueError(f"raw text is of the scheme text:, got {source}")
        return text


class LabelledData(Frozen):
    """Labelled sentences of one language: what is trained on, and what chooses the best checkpoint."""

    train: Sources
    dev: Annotated[tuple[Source, ...], BeforeValidator(as_list)] = ()


class Sampling(Frozen):
    """How often each of several source languages is drawn for a batch: by size and temperature, or by fixed weights."""

    temperature: float = Field(1.0, gt=0, description="shares are size ** (1 / temperature): 1 keeps the sizes")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="by source language, in place of sizes")


class TargetTask(Frozen):
    """A target task: its labels, the source languages it is learnt from and the test data of each language.

    What is allowed beyond this (which labels, which schemes, which columns) is for its objective to say.
    """

    name: str
    objective: str
    labels: tuple[str, ...] = ()
    columns: dict[str, str] = Field({}, description="what the objective calls a column -> its name in the files")
    relabel: dict[str, str] = Field({}, description="a label in the files -> what it is read as")
    sources: dict[str, LabelledData] = Field(min_length=1)
    order: Literal["joint", "sequential"] = Field(
        "joint", description="several source languages mixed, batch by batch, or one after the other"
    )
    sampling: Sampling = Sampling()
    test: dict[str, Sources]
    dev: dict[str, Sources] = Field({}, description="what weights of compositions may be searched on, by language")
    supervised: dict[str, LabelledData] = Field({})

    @field_validator("objective")
    @classmethod
    def _known(cls, objective: str) -> str:
        from ltsft.objectives.registry import OBJECTIVES  # loads torch, which reading a source need not

        if objective not in OBJECTIVES:
            raise ValueError(f"there is no such objective; allowed are {', '.join(OBJECTIVES)}")
        return objective

    @model_validator(mode="after")
    def _fits_objective(self) -> TargetTask:
        from ltsft.objectives.registry import OBJECTIVES

        problems = OBJECTIVES[self.objective].problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("labels must be distinct")
        return labels

    @model_validator(mode="after")
    def _weighs_its_sources(self) -> TargetTask:
        if self.sampling.weights and set(self.sampling.weights) != set(self.sources):
            raise ValueError(
                f"sampling.weights: give one for each source language ({', '.join(self.sources)}), "
                f"got {', '.join(self.sampling.weights)}"
            )
        if self.order == "sequential" and (len(self.sources) == 1 or self.sampling != Sampling()):
            raise ValueError("order: sequential is for two source languages or more, and leaves nothing to sample")
        return self

    @property
    def source_language(self) -> str:
        """The language that the task SFT is learnt from; the first of several."""
        return next(iter(self.sources))

    @property
    def source_name(self) -> str:
        """What the source languages are called together: ``en``, ``en and de`` mixed, ``en then de`` in sequence."""
        return (" then " if self.order == "sequential" else " and ").join(self.sources)

    def labelled(self, language: str) -> Mapping[str, LabelledData]:
        """Give the data of a task SFT by language: of the sources by their name together, else of a supervised one."""
        return self.sources if language == self.source_name else {language: self.supervised[language]}

    def held_out(self, language: str) -> tuple[Source, ...]:
        """Give the labelled data of a language that nothing was trained on and that is not its test set; often none."""
        labelled = {**self.supervised, **self.sources}.get(language)
        return self.dev.get(language) or (labelled.dev if labelled is not None else ())

    def all_sources(self) -> dict[str, Source]:
        """Give every source by its path below the target task."""
        found: dict[str, Source] = {}
        for section, data in (("sources", self.sources), ("supervised", self.supervised)):
            for code, labelled in data.items():
                found |= {f"{section}.{code}.train[{i}]": source for i, source in enumerate(labelled.train)}
                found |= {f"{section}.{code}.dev[{i}]": source for i, source in enumerate(labelled.dev)}
        for split, by_language in (("test", self.test), ("dev", self.dev)):
            for code, sources in by_language.items():
                found |= {f"{split}.{code}[{i}]": source for i, source in enumerate(sources)}
        return found


class Phase(Frozen):
    """Length and learning rate of the full or the sparse phase."""

    epochs: float = Field(1.0, gt=0)
    min_steps: int = Field(1, ge=1, description="optimizer steps at least")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps at most")
    learning_rate: float = Field(5e-5, gt=0)
    l1: float = Field(0.0, ge=0, description="weight of the pull to the base, l1 * sum|theta - theta0| / N")

    @model_validator(mode="after")
    def _ordered(self) -> Phase:
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(f"max_steps ({self.max_steps}) must be at least min_steps ({self.min_steps})")
        return self


_SINCE = (
    *("disjoint", "values", "processes", "nodes", "head", "rank", "variance", "high_order", "reduction"),
    "consistency",
)
"""Settings of a recipe that are younger than the first keys."""


class Recipe(Frozen):
    """How an SFT is learnt. Everything here is part of the key of the SFT."""

    density: float | None = Field(None, gt=0, le=1, description="share of the maskable weights that may train")
    size: int | None = Field(None, ge=1, description="K itself, instead of a density")
    iterations: int = Field(1, ge=1, description="rounds of select and train; each adds its share of K")
    head: Phase | None = Field(None, description="trains the head alone, before the full phase; none when null")
    full: Phase = Phase()
    sparse: Phase = Phase()
    batch_size: int = Field(32, ge=1, description="sequences in an optimizer step, over all processes of all nodes")
    accumulation: int = Field(1, ge=1, description="micro-batches that a batch is split into")
    max_length: int = Field(128, ge=8, description="sub-words in a sequence")
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of sub-words to predict (language only)")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of a phase in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0)
    dropout: float | None = Field(None, ge=0, lt=1, description="replaces the base's dropout; its own when null")
    max_grad_norm: float = Field(1.0, gt=0)
    evaluations: int = Field(4, ge=1, description="times that a phase looks at the held-out score")
    held_out: int = Field(64, ge=1, description="sequences of raw text kept from training (language only)")
    precision: Precision = "fp32"
    freeze: tuple[str, ...] = Field((), description="name patterns of more encoder parameters that stay as they are")
    disjoint: bool = Field(False, description="keep out of the supports of the source languages' SFTs (task only)")
    values: Literal["float32", "bfloat16"] = Field("float32", description="precision of the stored diffs")
    processes: int = Field(1, ge=1, description="processes of a node that train together, each with a GPU of its own")
    nodes: int = Field(1, ge=1, description="machines that train together, each with so many processes")
    consistency: Consistency | None = Field(None, description="penalties on what augmentation changes (task only)")
    rank: int | None = Field(None, ge=1, description="of the products of lora, of the low-order part of deft_x")
    variance: float = Field(0.9, gt=0, le=1, description="share that the low-order part has at least, without a rank")
    high_order: float = Field(0.05, ge=0, le=1, description="share of the high-order part that is kept (deft_x)")
    reduction: float | None = Field(None, gt=0, description="hidden size over the width of a bottleneck (mad_x)")
    seeds: tuple[int, ...] = Field((1,), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if (self.density is None) == (self.size is None):
            raise ValueError("give either density, in (0, 1], or size, the number of weights")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation})")
        if self.batch_size % (self.accumulation * self.processes * self.nodes):
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation}) x processes "
                f"({self.processes}) x nodes ({self.nodes})"
            )
        if self.head is not None and self.head.l1:
            raise ValueError(f"head.l1 must be 0, got {self.head.l1}: the head has no base to be pulled to")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be distinct")
        return self

    def of_seed(self, seed: int) -> dict[str, Any]:
        """Give the plain values that go into the key of the SFT trained with this seed."""
        # What changes nothing when it is left as it is stays out, so that a new option leaves old keys alone.
        plain = {name: type(self).model_fields[name].default for name in _SINCE}
        # Where word lists lie is no part of a key; what is in them stands beside the recipe, as of all data.
        places = {"consistency": {"augmentations": {"code_switch": {"words"}}}}
        values = self.model_dump(mode="json", exclude={"seeds": True, **places})
        return {**{n: v for n, v in values.items() if n not in plain or v != plain[n]}, "seed": seed}


class MethodRecipes(Frozen):
    """The recipes of a method: those of the project, with what its own section sets in their place."""

    recipes: dict[str, Recipe] = Field({})


class Store(Frozen):
    """Where products and checkpoints of this project are kept on this machine."""

    folder: Path
    checkpoint_minutes: float = Field(5.0, gt=0, description="the most work that a kill can cost")


class Project(Frozen):
    """A parsed project file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    artificial: bool = Field(False, description="the languages are artificial; said wherever they are shown")
    data_root: str
    base: BaseConfig
    languages: dict[str, Language] = Field(min_length=1)
    unseen: tuple[str, ...] = Field((), description="languages that the base was not pre-trained on")
    target_tasks: dict[str, TargetTask] = Field({})
    method: str = Field(LT_SFT, description="how SFTs are learnt")
    methods: dict[str, MethodRecipes] = Field({}, description="what of `recipes` is otherwise for a method")
    recipes: dict[str, Recipe]
    composition: CompositionSettings = CompositionSettings()
    gates: Gates = Gates()
    store: Store

    @model_validator(mode="after")
    def _suits_methods(self) -> Project:
        from ltsft.methods.registry import METHODS

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
        value.setdefault("store", {"folder": f"work/{value.get('name', 'project')}"})
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
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no project file {path}; configs/ has examples") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping with name, base, languages, target_tasks and recipes")
    raw = _without_sharing(raw)
    for override in overrides:
        _apply_override(raw, override)
    if base is not None:
        identifier, _, revision = base.partition("@")
        raw["base"] = {"id": identifier, "revision": revision or None}
    if method is not None:
        raw["method"] = method
    root = data_root or os.environ.get("LTSFT_DATA_ROOT") or raw.get("data_root") or "."
    raw["data_root"] = root if "://" in root else str(Path(root).expanduser().absolute())
    problems = _reference_problems(raw)
    try:
        project = Project.model_validate(raw, context={"data_root": raw["data_root"], "check_files": check_files})
    except PydanticError as error:
        problems = [*_field_problems(error), *problems]
    if problems:
        raise ConfigError(f"{path} has mistakes:\n" + "\n".join(f"  {problem}" for problem in problems))
    return project


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
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot set {dotted}: {value!r} is not readable YAML") from error


def _without_sharing(value: Any) -> Any:
    """Copy what a YAML anchor put into several places, so that an override changes one of them."""
    if isinstance(value, dict):
        return {key: _without_sharing(item) for key, item in value.items()}
    return [_without_sharing(item) for item in value] if isinstance(value, list) else value


def _reference_problems(raw: Mapping[str, Any]) -> list[str]:
    """Find names that stand for nothing. What is not of the right form is left to the models."""
    languages, targets, recipes = (_as_mapping(raw.get(name)) for name in ("languages", "target_tasks", "recipes"))
    problems = [
        f"{section}: the name {name!r} is not text; put it in quotes (YAML has other ideas of no, yes, on and numbers)"
        for section, names in (("languages", languages), ("target_tasks", targets))
        for name in names
        if not isinstance(name, str)
    ]
    unseen = raw.get("unseen") or ()
    if isinstance(unseen, (list, tuple)):
        problems += [f"unseen: {code!r} is not in languages" for code in unseen if code not in languages]
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
    if _as_mapping(recipes.get("language")).get("disjoint"):
        problems.append("recipes.language.disjoint: must be false: a language SFT has no other SFT to keep out of")
    known = ["language", *map(str, targets)]
    problems += [
        f"recipes.{n}: no such target task; allowed are {', '.join(known)}" for n in recipes if str(n) not in known
    ]
    problems += unknown_methods(raw, known)
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


def _as_mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _field_problems(error: PydanticError) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        got = item.get("input")
        shown = f", got {got!r}" if isinstance(got, (str, int, float)) and item["type"] != "extra_forbidden" else ""
        lines += [f"{where + ': ' if where else ''}{line}{shown}" for line in message.splitlines()]
    return [line for line in lines if not (line.startswith("methods.") and line.split(".", 2)[-1] in lines)]


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
