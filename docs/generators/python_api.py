"""The page of the Python API, from the docstrings of what `ltsft` exports. Sphinx's autodoc reads them."""

from __future__ import annotations

import inspect

import ltsft

__all__ = ["kinds", "page"]


def page() -> str:
    """Write the page as Markdown, without its title."""
    return "\n\n".join(f"## {title}\n\n{_entries(names)}" for title, names in kinds().items())


def kinds() -> dict[str, list[str]]:
    """Sort the exported names by what they are."""
    found: dict[str, list[str]] = {"Functions": [], "Classes": [], "Registries": [], "Errors": []}
    for name in ltsft.__all__:
        thing = getattr(ltsft, name)
        if name == "__version__":
            continue
        if inspect.isclass(thing):
            found["Errors" if issubclass(thing, Exception) else "Classes"].append(name)
        else:
            found["Functions" if callable(thing) else "Registries"].append(name)
    return found


def _entries(names: list[str]) -> str:
    lines = []
    for name in names:
        thing = getattr(ltsft, name)
        if inspect.isclass(thing):
            lines += [f".. autoclass:: ltsft.{name}", *([] if issubclass(thing, Exception) else ["   :members:"]), ""]
        elif callable(thing):
            lines += [f".. autofunction:: ltsft.{name}", ""]
        else:
            entries = ", ".join(f"``{entry}``" for entry in thing)
            lines += [f".. py:data:: {name}", "   :module: ltsft", "", f"   A mapping from names: {entries}.", ""]
    return "\n".join(["```{eval-rst}", *lines, "```"])
