"""The command `graddrop finetune`."""

import argparse
import os
from pathlib import Path

from graddrop.mask import GRANULARITIES
from graddrop.reference import SITES
from graddrop.xglue.config import (
    DROP_SCHEDULES,
    EVALUATIONS,
    PRECISIONS,
    RECIPES,
    SELECTIONS,
    FinetuneConfig,
)
from graddrop.xglue.methods import EXEMPTIONS, METHODS
from graddrop.xglue.scores.text_table import score_table
from graddrop.xglue.settings import SETTINGS, make_config, read_settings
from graddrop.xglue.tasks import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--config", type=Path, help="TOML or YAML file with any of the settings below; flags win"
    )
    parser.add_argument("--task", choices=tuple(TASKS))
    parser.add_argument("--data", help="folder, .tar.gz, hub or hub-archive")
    parser.add_argument(
        "--verify", action="store_true", default=None, help="check the archive's checksum"
    )
    parser.add_argument("--output", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where a killed run stopped")

    model = parser.add_argument_group("model and method")
    model.add_argument("--model", help="name on the Hub, folder, or tiny (default)")
    model.add_argument("--method", choices=tuple(METHODS), help=_method_help())
    model.add_argument(
        "--drop-prob", type=float, nargs="+", help="probability that an entry is dropped"
    )
    model.add_argument(
        "--drop-schedule",
        choices=DROP_SCHEDULES,
        help="several: one for each epoch (default), or from the first to the second",
    )
    model.add_argument(
        "--exempt", nargs="*", choices=tuple(EXEMPTIONS), help="parameters that are never masked"
    )
    model.add_argument("--granularity", choices=GRANULARITIES, help="what shares one decision")
    model.add_argument("--period", type=_period, help="how long a mask lives: step, epoch, steps")
    model.add_argument("--site", choices=SITES, help="where the mask acts")
    model.add_argument(
        "--rescale", action=argparse.BooleanOptionalAction, help="scale what is kept"
    )
    model.add_argument("--unfreeze-over", type=float, help="share of the training (default: 1)")
    model.add_argument("--seed", type=int, help="of weights, data order, dropout and masks")

    recipe = parser.add_argument_group("recipe (default: the task's published one)")
    recipe.add_argument("--recipe", choices=RECIPES, help="size of model that it is for")
    recipe.add_argument("--epochs", type=float)
    recipe.add_argument("--max-steps", type=int, help="optimizer steps, in place of --epochs")
    recipe.add_argument("--batch-size", type=int, help="examples per optimizer step and device")
    recipe.add_argument("--accumulation", type=int, help="micro-batches that make up a batch")
    recipe.add_argument("--lr", type=float, help="peak learning rate")
    recipe.add_argument("--weight-decay", type=float)
    recipe.add_argument("--warmup-steps", type=int)
    recipe.add_argument("--max-grad-norm", type=float)
    recipe.add_argument("--max-length", type=int, help="sub-words per model input")
    recipe.add_argument("--precision", choices=PRECISIONS)
    recipe.add_argument("--processes", type=int, help="refused if the launcher starts others")
    recipe.add_argument("--activation-checkpointing", action="store_true", default=None)

    evaluation = parser.add_argument_group("evaluation, checkpoints")
    evaluation.add_argument("--languages", nargs="*", help="default: all that are found")
    evaluation.add_argument(
        "--evaluate", nargs="+", choices=EVALUATIONS, help="what is scored (default: dev test)"
    )
    evaluation.add_argument("--eval-batch-size", type=int)
    evaluation.add_argument(
        "--select", choices=SELECTIONS, help="whose weights are kept (default: en-dev)"
    )
    evaluation.add_argument("--patience", type=int, help="evaluations without a better score")
    evaluation.add_argument(
        "--eval-all", action="store_true", default=None, help="learning curves of all languages"
    )
    evaluation.add_argument("--eval-steps", type=int, help="default: once per epoch")
    evaluation.add_argument("--save-steps", type=int, help="default: with each evaluation")
    evaluation.add_argument("--log-steps", type=int)
    evaluation.add_argument("--report-to", nargs="*", help="trackers, such as tensorboard")
    evaluation.add_argument("--keep-checkpoints", action="store_true", default=None)
    evaluation.add_argument(
        "--write-predictions", action="store_true", default=None, help="in the official format"
    )
    evaluation.add_argument("--limit-train", type=int, help="training examples to use")
    evaluation.add_argument("--limit-eval", type=int, help="examples to use of each file")


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


def _period(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _method_help() -> str:
    return "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
