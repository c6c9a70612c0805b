"""A document in Markdown, its tables aligned so that they can be read as plain text."""

import re
import unicodedata
from collections.abc import Sequence

from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Picture, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def render_markdown(blocks: Sequence[Block], pictures: str) -> str:
    """Write a document.

    Args:
        blocks: The document.
        pictures: Folder of the pictures, as seen from the file; `NAME.svg` are expected there.
    """
    return "\n\n".join(_render(block, pictures) for block in blocks) + "\n"


def render_table(table: Table) -> str:
    """Write a table whose numbers are aligned to the right."""
    rows = [[_escaped(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *map(_width, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(_padded(row, widths, table.names)) + " |" for row in rows]
    rule = ["-" * width for width in widths]
    rule = rule[: table.names] + [line[1:] + ":" for line in rule[table.names :]]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _render(block: Block, pictures: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escaped(text)}"
        case Paragraph(text):
            return _escaped(text)
        case Items(texts):
            return "\n".join(f"- {_escaped(text)}" for text in texts)
        case Table(caption=caption):
            return f"**{_escaped(caption)}**\n\n{render_table(block)}"
        case Picture(name, caption):
            return f"![{_escaped(caption)}]({pictures}/{name}.svg)\n\n*{_escaped(caption)}*"


def _padded(row: Sequence[str], widths: Sequence[int], names: int) -> list[str]:
    gaps = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
    cells = list(enumerate(zip(row, gaps, strict=True)))
    return [cell + gap if index < names else gap + cell for index, (cell, gap) in cells]


def _width(text: str) -> int:
    """Return the columns that a text takes on a screen: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _escaped(text: str) -> str:
    """Keep what runs have written from being read as Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
