"""Links of README and the documentation lead somewhere: to a file of the repository, and to a heading in it.

`make docs` asks Sphinx the same; this needs none of its packages.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])


@cache
def tokens_of(page: Path) -> list[Token]:
    """The page as a stream of blocks, each with what is within it."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def links_of(page: Path) -> list[str]:
    """Where the links and images of a page lead."""
    inner = [child for token in tokens_of(page) for child in token.children or []]
    return [str(token.attrs[name]) for token in inner for name in ("href", "src") if name in token.attrs]


@cache
def anchors_of(page: Path) -> set[str]:
    """The names that GitHub, and so our Sphinx, gives to the headings of a page."""
    blocks, seen, anchors = tokens_of(page), Counter[str](), set()
    for opening, heading in pairwise(blocks):
        if opening.type != "heading_open":
            continue
        text = "".join(part.content for part in heading.children or [] if part.type in ("text", "code_inline"))
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    dead = []
    for link in links_of(page):
        scheme, host, path, _, anchor = urlsplit(link)
        if scheme or host:
            continue
        target = (page.parent / unquote(path)).resolve() if path else page
        if not target.exists() or (anchor and (target.suffix != ".md" or unquote(anchor) not in anchors_of(target))):
            dead.append(link)

    assert not dead


def test_every_page_of_docs_is_in_the_navigation() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = [line for tree in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for line in tree.split("\n")]
    docs = [page.relative_to(ROOT) for page in PAGES if ROOT / "docs" in page.parents]
    pages = {page.relative_to("docs").with_suffix("").as_posix() for page in docs}

    assert sorted(line for line in listed if line and not line.startswith(":")) == sorted(pages - {"index"})
