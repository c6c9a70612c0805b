r"""One arm less another over chosen seeds: mean score of a task's zero-shot languages on test.

    python docs/evidence/paired.py runs.jsonl gradual-unfreezing 5.66e-4 \
        runs.jsonl standard 2.83e-4 --seeds 5 6 7 8 9

Files lie beside this one. An arm is a method at a learning rate; p is that of the report's test.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from graddrop.xglue.report.analysis_plan import read_analysis_plan
from graddrop.xglue.report.statistics import estimate, paired_p

HERE = Path(__file__).parent
WHERE = {
    "pos": {"limit_train": 240, "max_steps": 120, "batch_size": 16},
    "ner": {"limit_train": 480, "max_steps": 240, "batch_size": 16},
}


def scores(file: str, method: str, lr: float, task: str = "pos") -> dict[int, float]:
    """Return the score by seed, in %.

    Args:
        file: Name of the file of rows.
        method: Name of the method.
        lr: Its learning rate.
        task: Of those of the main study, at that study's size.
    """
    languages, where = read_analysis_plan(HERE / "report.toml").languages[task], WHERE[task]
    found = {}
    for line in (HERE / file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        test = row["scores"]["test"]
        settings = {name: row["settings"][name] for name in where}
        if (row["task"], row["method"], row["lr"], settings) == (task, method, lr, where) and test:
            values = [test[code][row["metric"]] for code in languages]
            found[row["seed"]] = 100 * math.fsum(values) / len(values)
    return found


def table(ours: dict[int, float], theirs: dict[int, float], seeds: Sequence[int] = ()) -> str:
    """Return the mean difference, its 95 % interval and p, over the seeds that both have.

    Args:
        ours: Scores by seed.
        theirs: As many or others.
        seeds: Only these; empty: all.
    """
    both = sorted(seed for seed in ours.keys() & theirs.keys() if not seeds or seed in seeds)
    differences = [ours[seed] - theirs[seed] for seed in both]
    gain, p = estimate(differences), paired_p(differences)
    half = gain.half_width or math.nan
    return (
        "| difference, points | 95 % interval | pairs | p |\n|--:|--:|--:|--:|\n"
        f"| {gain.mean:+.2f} | {gain.mean - half:+.2f} to {gain.mean + half:+.2f} | {gain.n} | "
        f"{'-' if p is None else f'{p:.3f}'} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of two arms."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for which in ("one", "other"):
        parser.add_argument(f"{which}_file", help="of rows")
        parser.add_argument(f"{which}_method")
        parser.add_argument(f"{which}_lr", type=float)
    parser.add_argument("--task", choices=WHERE, default="pos")
    parser.add_argument("--seeds", type=int, nargs="+", default=())
    args = parser.parse_args(argv)
    ours = scores(args.one_file, args.one_method, args.one_lr, args.task)
    theirs = scores(args.other_file, args.other_method, args.other_lr, args.task)
    print(table(ours, theirs, args.seeds))


if __name__ == "__main__":
    main()
