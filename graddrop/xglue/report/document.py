"""A document as a list of blocks that know nothing of how they are written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A title of the document (level 1), of a section (2) or of a part (3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells under a caption.

    Args:
        name: By which `find_table` finds it.
        caption: What the table shows, with its unit.
        columns: Heads of the columns; the first names the rows.
        rows: As many cells in each as there are columns.
        names: How many of the first columns hold names, not numbers.
        apart: How many of the last columns are not of the same origin as the others.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    apart: int = 0


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: Name of its files, without a suffix.
        caption: What it shows, for those as well who cannot see it.
        files: The figure as a file in some formats, by suffix: `svg`, `png`.
    """

    name: str
    caption: str
    files: Mapping[str, bytes]


Block = Heading | Paragraph | Items | Table | Picture


def find_table(blocks: Sequence[Block], name: str) -> Table:
    """Return a table of a document.

    Raises:
        LookupError: If there is none of that name.
    """
    for block in blocks:
        if isinstance(block, Table) and block.name == name:
            return block
    raise LookupError(f"no table {name!r}")
