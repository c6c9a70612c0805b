"""How Sphinx makes the site of these pages: `make docs`, in which every warning is an error."""

import os
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

from graddrop import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]

project = "graddrop"
release = __version__
copyright = "the graddrop authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["evidence/results-figures"]
suppress_warnings = ["ref.footnote"]

myst_heading_anchors = 3  # as code hosts make them
highlight_language = "none"  # of blocks that name no language: commands and equations
default_role = "literal"  # docstrings quote code with one backtick, or with two
nitpicky = True  # a name in a docstring that leads nowhere is an error
# Of other projects, and the blocks that a report is made of.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|transformers|collections|pathlib|graddrop.xglue.report.document)\b.*")
]
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"graddrop {release}"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
html_show_sphinx = False

LINK = re.compile(r"(!?)(\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)")


def with_site_links(text: str, folder: Path) -> str:
    """A page's text, whose links to files that are no pages lead to the repository.

    Args:
        text: in Markdown.
        folder: that relative links start from.
    """

    def replaced(match: re.Match[str]) -> str:
        image, name, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target:
            return match[0]
        file = Path(os.path.normpath(folder / target))
        if not file.exists():
            getLogger(__name__).warning("%s: no file at the end of %s", folder, match[0])
        if image or (file.suffix == ".md" and file.is_relative_to(ROOT / "docs")):
            return match[0]
        return f"{name}({REPOSITORY}/blob/main/{file.relative_to(ROOT).as_posix()}{anchor})"

    return LINK.sub(replaced, text)


def prepare(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the README into the page that asks for it, and mend links before they are read."""
    begin = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Further\n")[0]
    text = with_site_links(content[0], (ROOT / "docs" / docname).parent)
    start = with_site_links(begin, ROOT).replace("](docs/", "](")
    content[0] = text.replace("<!-- README -->", start)


def setup(app: Sphinx) -> None:
    """Have every page prepared."""
    app.connect("source-read", prepare)
