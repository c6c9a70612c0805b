"""Scores as text for the screen."""

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, float]]
"""Language, metric: fraction."""


def mean_over_languages(scores: Scores) -> dict[str, float]:
    """Return the unweighted mean of each metric, as the benchmark averages a task."""
    rows = list(scores.values())
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def score_table(title: str, splits: Mapping[str, Scores]) -> str:
    """Render scores: a row per language, a column per split and metric, in per cent.

    Args:
        title: What stands in the corner.
        splits: Scores of each split; a language may be missing from one of them.
    """
    columns = [
        (split, metric)
        for split, scores in splits.items()
        for metric in next(iter(scores.values()), {})
    ]
    languages = sorted({language for scores in splits.values() for language in scores})
    means = {split: mean_over_languages(scores) for split, scores in splits.items()}
    rows = [(title, [f"{split} {metric}" for split, metric in columns])]
    for language in languages:
        cells = (splits[split].get(language, {}).get(metric) for split, metric in columns)
        rows.append((language, [_percent(cell) for cell in cells]))
    rows.append(("mean", [_percent(means[split][metric]) for split, metric in columns]))
    return "\n".join(" ".join([f"{name:8}", *(f"{c:>20}" for c in cells)]) for name, cells in rows)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"
