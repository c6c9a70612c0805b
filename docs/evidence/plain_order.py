"""Standard fine-tuning with batches drawn at random, whatever the length of their sentences.

    python docs/evidence/plain_order.py docs/evidence/order-pos.toml --scores FILE --workers 2
    python docs/evidence/plain_order.py

The harness batches sentences of like length, which pads less; this sweep does not. Without
arguments it prints what the sorted order's score is less than that of the plain one, from the rows
in `runs-order.jsonl` and those of the same seeds in `runs.jsonl`.
"""

import json
import math
import sys
from pathlib import Path

from graddrop.cli import main
from graddrop.xglue.report.analysis_plan import read_analysis_plan
from graddrop.xglue.report.statistics import estimate
from graddrop.xglue.training import order

HERE = Path(__file__).parent

# One batch at a time is sorted, which changes no batch. The sweep's processes read this file, too.
order.POOL = 1


def scores(file: Path, lr: float) -> dict[int, float]:
    """Return standard fine-tuning's mean score over zero-shot languages of POS by seed, in %."""
    languages = read_analysis_plan(HERE / "report.toml").languages["pos"]
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {
        row["seed"]: 100
        * math.fsum(row["scores"]["test"][code][row["metric"]] for code in languages)
        / len(languages)
        for row in rows
        if (row["task"], row["method"], row["lr"]) == ("pos", "standard", lr)
        and row["scores"]["test"]
    }


def table() -> str:
    """Return the difference with its 95 % interval."""
    plain, by_length = (scores(HERE / name, 2.83e-4) for name in ("runs-order.jsonl", "runs.jsonl"))
    seeds = sorted(plain.keys() & by_length.keys())
    gain = estimate([by_length[seed] - plain[seed] for seed in seeds])
    low, high = gain.mean - (gain.half_width or 0), gain.mean + (gain.half_width or 0)
    return (
        "| batches of like length less plain ones | pairs | 95 % interval |\n|--:|--:|--:|\n"
        f"| {gain.mean:+.2f} | {gain.n} | {low:+.2f} to {high:+.2f} |"
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(table())
    else:
        sys.exit(main(["sweep", *sys.argv[1:]]))
