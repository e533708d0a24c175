"""The recipes of each method: the project's, with what the method's own section of the project file sets otherwise.

    recipes: {language: {density: 0.08, full: {learning_rate: 4.0e-4}}}
    methods: {lora: {recipes: {language: {full: {learning_rate: 1.0e-3}}}}}

What only some methods have (`rank`) stands beside the rest in the file, and in `own` of a parsed recipe.

All of this happens before anything is parsed: what is not of the right form is passed on, for the models to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltsft.config import LT_SFT

if TYPE_CHECKING:
    from ltsft.methods import Method

__all__ = ["own_problems", "unknown_methods", "work_out_recipes"]

_SIZES = frozenset({"density", "size"})


def work_out_recipes(raw: dict[str, Any]) -> dict[str, Any]:
    """Work out the recipes of every method, and choose those of the project's.

    Args:
        raw: the project file as it was read.

    Returns:
        A copy in which `methods` has an entry for each method there is, and `recipes` are those of `method`.
    """
    from ltsft.methods import METHODS

    methods, recipes = raw.get("methods") or {}, raw.get("recipes")
    if not isinstance(methods, Mapping) or not isinstance(recipes, Mapping):
        return raw
    worked_out: dict[Any, Any] = {}
    for name in dict.fromkeys((*METHODS, *methods)):
        section = methods.get(name) or {}
        own = section.get("recipes") or {} if isinstance(section, Mapping) else {}
        if not isinstance(section, Mapping) or not isinstance(own, Mapping) or section.keys() - {"recipes"}:
            worked_out[name] = section
            continue
        method = METHODS.get(name)
        inherited = recipes if method is None else {part: _of_use(recipe, method) for part, recipe in recipes.items()}
        merged = {part: _merged_recipe(recipe, own.get(part, {})) for part, recipe in inherited.items()}
        worked_out[name] = {"recipes": {part: _own_apart(recipe) for part, recipe in merged.items()}}
    chosen = worked_out.get(str(raw.get("method", LT_SFT)))
    if isinstance(chosen, Mapping) and isinstance(chosen.get("recipes"), Mapping):
        recipes = chosen["recipes"]
    return {**raw, "methods": worked_out, "recipes": recipes}


def own_problems(raw: dict[str, Any]) -> list[str]:
    """Say what is wrong with the settings that only some methods have, for each method.

    Args:
        raw: the project file as it was read.
    """
    from ltsft.methods import METHODS

    chosen = str(raw.get("method", LT_SFT))
    problems = []
    for name, section in _mapping(work_out_recipes(raw).get("methods")).items():
        place = "recipes" if name == chosen else f"methods.{name}.recipes"
        for part, recipe in _mapping(_mapping(section).get("recipes")).items() if name in METHODS else ():
            own = _mapping(_mapping(recipe).get("own"))
            problems += [f"{place}.{part}.{line}" for line in METHODS[name].settings.problems(own, method=name)]
    return problems


def unknown_methods(raw: Mapping[str, Any], known: list[str]) -> list[str]:
    """Name methods that there are not, and recipes of methods that stand for nothing.

    Args:
        raw: the project file as it was read.
        known: names of the recipes of the project.
    """
    from ltsft.methods import METHODS

    allowed = ", ".join(METHODS)
    problems = []
    if str(raw.get("method", LT_SFT)) not in METHODS:
        problems.append(f"method: there is no method {raw['method']!r}; allowed are {allowed}")
    for name, section in _mapping(raw.get("methods")).items():
        if name not in METHODS:
            problems.append(f"methods.{name}: there is no such method; allowed are {allowed}")
        problems += [
            f"methods.{name}.recipes.{part}: no such target task; allowed are {', '.join(known)}"
            for part in _mapping(_mapping(section).get("recipes"))
            if str(part) not in known
        ]
    return problems


def _of_use(recipe: Any, method: Method) -> Any:
    """Leave out what a method has no use for, so that a recipe may have it for the others; its own section may not."""
    if not isinstance(recipe, Mapping):
        return recipe
    kept = dict(recipe)
    if not method.has_rounds:
        kept.pop("iterations", None)
        kept.pop("disjoint", None)
    consistency = kept.get("consistency")
    if isinstance(consistency, Mapping) and method.phases != ("full", "sparse"):
        kept["consistency"] = {name: value for name, value in consistency.items() if name != "model"}
    return kept


def _own_apart(recipe: Any) -> Any:
    """Put the settings that only some methods have apart from those that all have."""
    from ltsft.methods import METHODS

    if not isinstance(recipe, Mapping):
        return recipe
    known = {name for method in METHODS.values() for name in method.settings.model_fields}
    own = {name: value for name, value in recipe.items() if name in known}
    return {**{name: value for name, value in recipe.items() if name not in own}, **({"own": own} if own else {})}


def _merged_recipe(recipe: Any, own: Any) -> Any:
    """Put the settings of a method over those of a recipe; a size replaces a density, and the other way round."""
    if not isinstance(recipe, Mapping) or not isinstance(own, Mapping):
        return own or recipe
    left_out = _SIZES if own.keys() & _SIZES else frozenset()
    merged = {name: value for name, value in recipe.items() if name not in left_out}
    for name, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
