"""When does masking help? Gains over standard fine-tuning against how often a sentence is seen.

    python docs/evidence/map_of_when.py

Reads the rows of plan-map.md, `runs-map.jsonl`, and those of its known cell, `runs.jsonl`, and
prints the table and the slopes of docs/evidence.md. A pair are two runs of the same sentences,
steps and seed.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from graddrop.xglue.report.analysis_plan import read_analysis_plan
from graddrop.xglue.report.statistics import RESAMPLES, estimate

HERE = Path(__file__).parent

RATES = {("standard", None): 2.83e-4, ("graddrop", 0.5): 4e-4, ("graddrop", 0.75): 5.66e-4}
"""Of the plan, by method and p; runs at other rates belong to other questions."""

KNOWN = (240, 120)
"""Sentences and steps of the cell whose gains were known when the plan was written."""


@dataclass(frozen=True)
class Pair:
    """A run with masks beside the one without.

    Args:
        cell: Number of sentences and of steps.
        drop_prob: p.
        seed: Of both runs.
        gain: Score of the masked run less that of the other, in points.
        loss: Mean training loss of standard fine-tuning.
    """

    cell: tuple[int, int]
    drop_prob: float
    seed: int
    gain: float
    loss: float

    @property
    def epochs(self) -> float:
        """How often each sentence is seen; batches are of 16."""
        sentences, steps = self.cell
        return steps / math.ceil(sentences / 16)


def pairs(rows: Iterable[dict[str, Any]], languages: Sequence[str]) -> list[Pair]:
    """Return all pairs, by cell, p and seed.

    Args:
        rows: Of files of raw scores.
        languages: Whose mean official score on test is the score of a run.
    """
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in rows:
        test = row["scores"]["test"]
        drop_prob = row["drop_prob"] if row["method"] != "standard" else None
        if not test or row["task"] != "pos" or RATES.get((row["method"], drop_prob)) != row["lr"]:
            continue
        settings = row["settings"]
        key = (settings["limit_train"], row["steps"]), drop_prob, row["seed"]
        if settings["batch_size"] != 16 or key in found:
            raise ValueError(f"expected one run of {key} in batches of 16; look at its rows")
        scores = [test[language][row["metric"]] for language in languages]
        found[key] = 100 * math.fsum(scores) / len(scores), row["train_loss"]
    return sorted(
        (
            Pair(
                cell,
                drop_prob,
                seed,
                score - found[cell, None, seed][0],
                found[cell, None, seed][1],
            )
            for (cell, drop_prob, seed), (score, _) in found.items()
            if drop_prob is not None and (cell, None, seed) in found
        ),
        key=lambda pair: (pair.drop_prob, pair.epochs, pair.cell, pair.seed),
    )


def slope(x: Sequence[float], gains: Sequence[float]) -> tuple[float, float]:
    """Return the slope of gains in x, by least squares, and its two-sided permutation p.

    Args:
        x: At least two different numbers.
        gains: As many, which no trend would leave in any order.
    """
    centred = np.asarray(x, dtype=np.float64) - np.mean(x)

    def slope_of(values: Any, axis: int = -1) -> Any:
        return (centred * values).sum(axis=axis) / (centred * centred).sum()

    test = stats.permutation_test(
        (np.asarray(gains),),
        slope_of,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=0,
    )
    return float(slope_of(np.asarray(gains))), float(test.pvalue)


def table(found: Sequence[Pair]) -> str:
    """Return mean and 95 % interval of the gain in each cell."""
    heads = ("sentences", "steps", "epochs", "p", "pairs", "standard's training loss")
    heads += ("gain, points", "95 % interval")
    lines = [f"| {' | '.join(heads)} |", f"|{'--:|' * len(heads)}"]
    for drop_prob, epochs, cell in sorted({(q.drop_prob, q.epochs, q.cell) for q in found}):
        here = [pair for pair in found if (pair.drop_prob, pair.cell) == (drop_prob, cell)]
        gain = estimate([pair.gain for pair in here])
        half = gain.half_width
        interval = "-" if half is None else f"{gain.mean - half:+.2f} to {gain.mean + half:+.2f}"
        loss = estimate([pair.loss for pair in here]).mean
        lines.append(
            f"| {cell[0]} | {cell[1]} | {epochs:g} | {drop_prob:g} | {len(here)} | {loss:.2f} | "
            f"{gain.mean:+.2f} | {interval} |"
        )
    return "\n".join(lines)


def slopes(found: Sequence[Pair]) -> str:
    """Return the slope that the plan tests, and those that stand beside it."""
    half = [pair for pair in found if pair.drop_prob == 0.5]
    asked = {
        "p = .5, per doubling of the epochs (the test)": (half, False),
        "p = .5, per doubling of the epochs, new cells alone": (
            [pair for pair in half if pair.cell != KNOWN],
            False,
        ),
        "p = .75, per doubling of the epochs": (
            [pair for pair in found if pair.drop_prob == 0.75],
            False,
        ),
        "p = .5, per unit of standard's training loss": (half, True),
    }
    lines = ["| slope of the gain | pairs | points | p |", "|---|--:|--:|--:|"]
    for name, (chosen, by_loss) in asked.items():
        x = [pair.loss if by_loss else math.log2(pair.epochs) for pair in chosen]
        if len(set(x)) > 1:
            value, p = slope(x, [pair.gain for pair in chosen])
            lines.append(f"| {name} | {len(chosen)} | {value:+.2f} | {p:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and the slopes."""
    languages = read_analysis_plan(HERE / "report.toml").languages["pos"]
    rows = [
        json.loads(line)
        for name in ("runs.jsonl", "runs-map.jsonl")
        for line in (HERE / name).read_text(encoding="utf-8").splitlines()
    ]
    found = pairs(rows, languages)
    print(f"{table(found)}\n\n{slopes(found)}")


if __name__ == "__main__":
    main()
