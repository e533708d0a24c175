"""The site of this folder. `make docs` builds it; a warning is an error.

Pages are Markdown that reads well without being built, too. Links to files of the repository that are no page are
checked, and shown as what they name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.generators import command_line, project_file, python_api  # noqa: E402
from ltsft import __version__  # noqa: E402

project = "ltsft"
author = "The ltsft maintainers"
copyright = "2026, the ltsft maintainers"
release = version = __version__
html_title = "ltsft"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_static"]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4  # links to headings are what GitHub makes of them
suppress_warnings = ["misc.highlighting_failure"]  # `...` in YAML examples

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
default_role = "code"  # `name` in a docstring
highlight_language = "none"  # of blocks that name no language
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures; what pages name is checked as links

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7cc0ea", "color-brand-content": "#7cc0ea"},
}
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp"


class Generated(SphinxDirective):
    """What a page of docs/reference holds: it is written from the code when the site is built, and never kept."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write it and read it as Markdown."""
        pages = {"project_file": project_file, "command_line": command_line, "python_api": python_api}
        return self.parse_text_to_nodes(pages[self.arguments[0]].page(), allow_section_headings=True)


def name_files(app: Sphinx, page: nodes.document) -> None:
    """Show links to what is no page as the names that they have in the repository: the site does not copy them."""
    folder = Path(app.env.doc2path(app.env.current_document.docname)).parent
    for link in [*page.findall(download_reference), *page.findall(pending_xref)]:
        is_page = link.get("refdomain") == "doc"  # else what MyST could not find among the pages
        # CONTRIBUTING.md is included here, and lies in the root
        if not is_page and any((start / unquote(link["reftarget"])).exists() for start in (folder, ROOT)):
            link.replace_self(nodes.inline("", "", *link.children, classes=["file"]))


def setup(app: Sphinx) -> None:
    """Tell Sphinx of what is in this file."""
    app.add_directive("generated", Generated)
    app.connect("doctree-read", name_files)
