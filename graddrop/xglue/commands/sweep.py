"""The command `graddrop sweep`: many runs, each brought to its end, whatever happens to some."""

import argparse
import sys
from pathlib import Path

from graddrop.xglue.sweep.plan import read_plan
from graddrop.xglue.sweep.runner import SweepError, run_state, sweep
from graddrop.xglue.textfile import printable
from graddrop.xglue.training.score_file import ScoreFile


def run(args: argparse.Namespace) -> int:
    """Run the sweep; return 1 if a run has failed.

    Raises:
        ValueError: If the plan is not one, or the output holds something else.
        OSError: If the plan cannot be read, or the output cannot be written.
    """
    plan, named = read_plan(args.config)
    output = args.output or (Path(named) if named else None)
    if output is None:
        raise ValueError(f"expected output in {args.config}, or --output")
    if args.dry_run:
        kept = ScoreFile(args.scores) if args.scores else None
        for config in plan.configs(output):
            print(f"{Path(config.output).name}: {printable(run_state(config, kept))}")
        return 0
    try:
        results = sweep(plan, output, workers=args.workers, engine=args.engine, scores=args.scores)
    except SweepError as error:
        print(f"{printable(str(error))}\nThe same command tries again.", file=sys.stderr)
        return 1 if error.failed else 0
    print(f"{len(results)} runs finished, written to {output / 'runs'}")
    return 0
