"""The plan: every product of a project, its key, whether it is up to date, and if not, why. Pure: it reads nothing.

The key of a product is a hash of everything that determines it. Two products with one key are the same product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ltsft.canonical import hash_json
from ltsft.config import LT_SFT, LabelledData, Recipe, Source, TargetTask
from ltsft.errors import ConfigError
from ltsft.methods import method_named
from ltsft.project.project import Language, Project

__all__ = [
    "Existing",
    "Fingerprints",
    "Plan",
    "Product",
    "Step",
    "cell_subject",
    "language_subject",
    "make_plan",
    "task_subject",
]

TRAINING = 2
"""Version of `ltsft.training.train` and what it uses, part of every key: raised when the same inputs would give another
SFT.
"""

SCORING = 3
"""Version of `ltsft.evaluation.scoring` and of all that it uses, part of the key of every cell: raised likewise."""


@dataclass(frozen=True)
class Fingerprints:
    """What the inputs are, as SHA-256 each.

    Attributes:
        encoder: of the base's encoder.
        head: of the base's masked-LM head.
        tokenizer: of the base's tokenizer.
        sources: of each data source, by `str(source)`.
    """

    encoder: str
    head: str
    tokenizer: str
    sources: Mapping[str, str]

    def of(self, sources: Iterable[Source]) -> list[str]:
        """Give the fingerprints of some sources, in their order."""
        return [self.sources[str(source)] for source in sources]


class Existing(Protocol):
    """What the plan needs to know of a product that exists; `tasks.tracking.records.FinishedRun` is one."""

    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def parts(self) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class Product:
    """One SFT or one cell that a project asks for.

    Attributes:
        kind: "language", "task" or "cell".
        subject: what it is about, such as "language fo", "task pos en seed 1", "cell pos fo".
        key: the hash of `parts`.
        parts: everything that determines it.
        needs: subjects of the products that it is made from.
        language: of a language SFT or a cell; the source language of a task SFT, or several as ``en and de``.
        target_task: of a task SFT or a cell.
        seed: of an SFT.
        is_supervised: whether a task SFT learns from the labelled data of a target language, for comparison.
    """

    kind: str
    subject: str
    key: str
    parts: Mapping[str, Any]
    needs: tuple[str, ...]
    language: str
    target_task: str | None = None
    seed: int | None = None
    is_supervised: bool = False


@dataclass(frozen=True)
class Step:
    """A product and its state: up to date when `run_id` is set, otherwise `reasons` says why it is to be made."""

    product: Product
    run_id: str | None
    reasons: tuple[str, ...]

    @property
    def is_up_to_date(self) -> bool:
        """Whether a finished run has this key."""
        return self.run_id is not None

    def as_row(self) -> dict[str, Any]:
        """Give plain values, for tables and JSON."""
        return {
            "product": self.product.subject,
            "kind": self.product.kind,
            "key": self.product.key,
            "up_to_date": self.is_up_to_date,
            "reasons": list(self.reasons),
            "run_id": self.run_id,
        }


@dataclass(frozen=True)
class Plan:
    """All steps of a project, each after those that it needs."""

    steps: tuple[Step, ...]

    def step(self, subject: str) -> Step:
        """Give the step of a subject.

        Raises:
            ConfigError: the project asks for no such product.
        """
        for step in self.steps:
            if step.product.subject == subject:
                return step
        allowed = ", ".join(repr(step.product.subject) for step in self.steps)
        raise ConfigError(f"the project asks for no product {subject!r}; allowed are {allowed}")

    def of_kind(self, kind: str) -> tuple[Step, ...]:
        """Give the steps of a kind: "language", "task" or "cell"."""
        return tuple(step for step in self.steps if step.product.kind == kind)

    def with_needs(self, subjects: Iterable[str]) -> set[str]:
        """Give these subjects and everything that they are made from.

        Raises:
            ConfigError: the project asks for no such product.
        """
        wanted = set(subjects)
        while True:
            needed = {need for subject in wanted for need in self.step(subject).product.needs}
            if needed <= wanted:
                return wanted
            wanted |= needed

    @property
    def stale(self) -> tuple[Step, ...]:
        """The steps that are not up to date."""
        return tuple(step for step in self.steps if not step.is_up_to_date)


def language_subject(code: str) -> str:
    """Name the language SFT of a language."""
    return f"language {code}"


def task_subject(target_task: str, source_language: str, seed: int) -> str:
    """Name a task SFT."""
    return f"task {target_task} {source_language} seed {seed}"


def cell_subject(target_task: str, language: str) -> str:
    """Name a cell."""
    return f"cell {target_task} {language}"


def make_plan(
    project: Project,
    prints: Fingerprints,
    existing: Iterable[Existing],
    *,
    failures: Mapping[str, str] | None = None,
) -> Plan:
    """Say what a project asks for, what exists, and why the rest does not.

    Args:
        project: the project.
        prints: fingerprints of the base and of every source.
        existing: finished products, newest first.
        failures: by subject, what the last attempt failed with.

    Returns:
        Language SFTs, then task SFTs, then cells.
    """
    by_key: dict[str, Existing] = {}
    newest: dict[str, Existing] = {}
    for record in existing:
        by_key.setdefault(record.key, record)
        if record.parts.get("method", LT_SFT) == project.method:
            newest.setdefault(record.subject, record)
    failed = failures or {}
    steps = []
    for product in products(project, prints):
        found = by_key.get(product.key)
        reasons: tuple[str, ...] = ()
        if found is None:
            before = newest.get(product.subject)
            reasons = explain_change(before.parts, product.parts) if before is not None else ("new",)
            if product.subject in failed:
                lines = failed[product.subject].strip().splitlines() or ["no reason was given"]
                reasons = (*reasons, f"the last attempt failed: {lines[0]}")
        steps.append(Step(product, found.run_id if found is not None else None, reasons))
    return Plan(tuple(steps))


def products(project: Project, prints: Fingerprints) -> list[Product]:
    """List every product of a project with its key, each after those that it needs."""
    return _Products(project, prints).listed()


class _Products:
    """Works out the products of a project, each from what it is made of and from those that it needs."""

    def __init__(self, project: Project, prints: Fingerprints) -> None:
        self._project = project
        self._prints = prints
        self._method = method_named(project.method)
        self._named = {} if self._method.name == LT_SFT else {"method": self._method.name}
        self._encoder = {"encoder": prints.encoder, "tokenizer": prints.tokenizer}
        self._found: dict[str, Product] = {}

    def listed(self) -> list[Product]:
        """Give all of them."""
        for code, language in self._project.languages.items() if self._method.has_languages else ():
            self._add_language(code, language)
        for target in self._project.target_tasks.values():
            seeds = self._project.recipes[target.name].seeds
            source = target.source_name
            sources = [self._add_task(target, target.sources, source, seed) for seed in seeds]
            supervised = {
                code: self._add_task(target, {code: data}, code, seeds[0], is_supervised=True)
                for code, data in target.supervised.items()
            }
            for code in target.test:
                self._add_cell(target, code, [*sources, *([supervised[code]] if code in supervised else [])])
        return list(self._found.values())

    def _add(self, kind: str, subject: str, parts: dict[str, Any], needs: Iterable[str], **facts: Any) -> None:
        upstream = {need: self._found[need].key for need in needs}
        parts = {"kind": kind, **self._named, **parts, "upstream": upstream}
        self._found[subject] = Product(kind, subject, hash_json(parts), parts, tuple(upstream), **facts)

    def _languages_of(self, codes: Iterable[str]) -> list[str]:
        return [language_subject(code) for code in codes] if self._method.has_languages else []

    def _add_language(self, code: str, language: Language) -> None:
        recipe = self._project.recipes["language"]
        parts = {
            "procedure": TRAINING,
            "language": code,
            "base": {**self._encoder, "head": self._prints.head},
            "text": self._prints.of(language.text),
            "recipe": self._method.used(recipe, recipe.seeds[0]),
        }
        self._add("language", language_subject(code), parts, (), language=code, seed=recipe.seeds[0])

    def _add_task(
        self,
        target: TargetTask,
        data: Mapping[str, LabelledData],
        language: str,
        seed: int,
        *,
        is_supervised: bool = False,
    ) -> str:
        """Add a task SFT, unless it is there; give its subject."""
        subject = task_subject(target.name, language, seed)
        recipe = self._project.recipes[target.name]
        parts = {
            "procedure": TRAINING,
            "target_task": target.name,
            "objective": target.objective,
            "labels": list(target.labels),
            **_reading(target),
            "source_language": language,
            "base": self._encoder,
            "train": _of_languages({code: self._prints.of(labelled.train) for code, labelled in data.items()}),
            "dev": _of_languages({code: self._prints.of(labelled.dev) for code, labelled in data.items()}),
            **(_mixing(target) if len(data) > 1 else {}),
            **_word_lists(recipe, self._prints),
            "recipe": self._method.used(recipe, seed),
        }
        facts = {"language": language, "target_task": target.name, "seed": seed, "is_supervised": is_supervised}
        if subject not in self._found:
            self._add("task", subject, parts, self._languages_of(data), **facts)
        return subject

    def _add_cell(self, target: TargetTask, code: str, tasks: Iterable[str]) -> None:
        """Add the score of a language, which task SFTs have."""
        has_languages = self._method.has_languages
        parts = {
            "procedure": SCORING,
            "language": code,
            "target_task": target.name,
            "base": {**self._encoder, "head": self._prints.head},
            "test": self._prints.of(target.test[code]),
            **_reading(target),
            **(self._project.composition.key_parts(code) if has_languages else {"rule": "sum"}),
        }
        needs = [*self._languages_of([code]), *tasks]
        self._add("cell", cell_subject(target.name, code), parts, needs, language=code, target_task=target.name)


def _of_languages(prints: Mapping[str, list[str]]) -> Any:
    """Give the fingerprints of the only language, or those of several by language, in their order."""
    return next(iter(prints.values())) if len(prints) == 1 else [[code, found] for code, found in prints.items()]


def _mixing(target: TargetTask) -> dict[str, Any]:
    """Give how several source languages are put together."""
    return {"order": target.order, "sampling": target.sampling.model_dump(mode="json")}


def _word_lists(recipe: Recipe, prints: Fingerprints) -> dict[str, Any]:
    """Give the fingerprints of the word lists of code-switching, where there is any."""
    words = recipe.consistency.sources if recipe.consistency is not None else ()
    return {"words": prints.of(words)} if words else {}


def _reading(target: TargetTask) -> dict[str, Any]:
    """Give how the files of a target task are read, where it says anything about it."""
    said = {"columns": dict(target.columns), "relabel": dict(target.relabel)}
    return {name: value for name, value in said.items() if value}


def explain_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which of the parts of a product changed, in words."""
    reasons = []
    was, became = before.get("base", {}), now.get("base", {})
    if was.get("encoder") != became.get("encoder") or was.get("head") != became.get("head"):
        reasons.append("base changed")
    if was.get("tokenizer") != became.get("tokenizer"):
        reasons.append("tokenizer changed")
    words = {
        "text": "text changed",
        "train": "training data changed",
        "dev": "dev data changed",
        "test": "test data changed",
        "words": "bilingual word list changed",
        "labels": "label set changed",
        "columns": "columns of the data changed",
        "relabel": "names of labels changed",
        "objective": "objective changed",
        "sampling": "sampling of source languages changed",
        "rule": "composition rule changed",
        "weights": "composition weights changed",
    }
    reasons += [text for part, text in words.items() if before.get(part) != now.get(part)]
    if before.get("procedure") != now.get("procedure"):
        reasons.append(f"procedure changed: version {before.get('procedure')} -> {now.get('procedure')}")
    reasons += _recipe_changes(before.get("recipe", {}), now.get("recipe", {}))
    upstream_before, upstream = before.get("upstream", {}), now.get("upstream", {})
    changed = [need for need in upstream if upstream_before.get(need) != upstream[need]]
    changed += [f"{need} (no longer needed)" for need in upstream_before if need not in upstream]
    if changed:
        reasons.append(f"upstream changed: {', '.join(changed)}")
    return tuple(reasons) or ("something else that determines it changed",)


def _recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    reasons = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            reasons += _recipe_changes(old, new, f"{prefix}{name}.")
        elif old != new:
            reasons.append(f"recipe changed: {prefix}{name} {old} -> {new}")
    return reasons
