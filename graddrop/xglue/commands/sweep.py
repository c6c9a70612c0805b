"""The command `graddrop sweep`: many runs, each brought to its end, whatever happens to some."""

import argparse
import sys
from pathlib import Path

from graddrop.xglue.sweep.plan import read_plan
from graddrop.xglue.sweep.runner import ENGINES, SweepError, run_state, sweep
from graddrop.xglue.training.score_file import ScoreFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("config", type=Path, help="TOML or YAML file with the plan")
    parser.add_argument("--output", type=Path, help="folder of the sweep, in place of the file's")
    parser.add_argument(
        "--workers", type=int, help="processes (default: one per GPU; without any, one per core)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="local", help="who runs them: this machine, or Ray"
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help="JSON lines: skip the runs that it holds, add those that finish",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs with their state, and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Run the sweep; return 1 if a run has failed, 130 after Ctrl-C.

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
            print(f"{Path(config.output).name}: {run_state(config, kept)}")
        return 0
    try:
        results = sweep(plan, output, workers=args.workers, engine=args.engine, scores=args.scores)
    except SweepError as error:
        print(f"{error}\nThe same command tries again.", file=sys.stderr)
        return 1 if error.failed else 0
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    print(f"{len(results)} runs finished, written to {output / 'runs'}")
    return 0
