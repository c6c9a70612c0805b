"""The command `graddrop finetune`."""

import argparse
import os

from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.scores.text_table import score_table
from graddrop.xglue.settings import SETTINGS, make_config, read_settings


def run(args: argparse.Namespace) -> int:
    """Run it and print the table of scores."""
    from graddrop.xglue.training.run import finetune

    config = config_from(args)
    result = finetune(config, resume=args.resume)
    if os.environ.get("RANK", "0") != "0":  # one process of several speaks
        return 0
    print(score_table(result["task"], result["scores"]))
    for split, languages in result["missing"].items():
        if languages:
            print(f"no {split} file, skipped: {', '.join(languages)}")
    print(f"\nWritten to {config.output}")
    return 0


def config_from(args: argparse.Namespace) -> FinetuneConfig:
    """Return the configuration that a parsed command line stands for.

    Raises:
        ValueError: If a setting is missing, unknown, of the wrong type or out of its range.
        OSError: If the file with settings cannot be read.
    """
    given = read_settings(args.config) if args.config else {}
    flags = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if len(flags.get("drop_prob", ())) == 1:
        [flags["drop_prob"]] = flags["drop_prob"]
    origin = f"command line and {args.config}" if args.config else "command line"
    return make_config(given | flags, origin)
