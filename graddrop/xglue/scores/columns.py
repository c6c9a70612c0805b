"""Examples as columns, which is how metrics and prediction files take them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Columns = Mapping[str, Sequence[Any]]
"""Values by the names of `graddrop.xglue.data.layouts`, one for each example."""


def columns_of(examples: Iterator[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn examples into columns."""
    rows = list(examples)
    return {name: [row[name] for row in rows] for name in rows[0]}
