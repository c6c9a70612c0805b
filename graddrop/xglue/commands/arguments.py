"""The arguments of every command, declared without what takes time to import."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graddrop.exemptions import EXEMPTIONS
from graddrop.xglue.config import (
    DROP_SCHEDULES,
    EVALUATIONS,
    PRECISIONS,
    RECIPES,
    SELECTIONS,
    FinetuneConfig,
)
from graddrop.xglue.methods import METHODS
from graddrop.xglue.sweep.runner import ENGINES
from graddrop.xglue.tasks import EVAL_SPLITS, TASKS
from graddrop.xglue.training.pretrain_config import HEAD_SIZE, PretrainConfig

_DATA = "folder, .tar.gz, hub or hub-archive"


class _Fields:
    """Flags that stand for the fields of a configuration and show their defaults.

    What is not given is None: a file of settings may hold it. Values are checked by the
    configuration, whoever gives them.

    Args:
        group: Where the flags are added.
        config: A dataclass.
    """

    def __init__(self, group: Any, config: type) -> None:
        self._group = group
        self._defaults = {field.name: field.default for field in dataclasses.fields(config)}

    def __call__(self, flag: str, help: str, default: str | None = None, **options: Any) -> None:
        """Add a flag.

        Args:
            flag: As on the command line.
            help: What it means.
            default: What happens without it, where the field's default does not tell.
            options: As `add_argument` takes them.
        """
        if default is None:
            value = self._defaults[flag.removeprefix("--").replace("-", "_")]
            shown = value if isinstance(value, tuple) else (value,)
            default = " ".join(map(str, shown)) or "none"
        if options.get("action") == "store_true":
            self._group.add_argument(flag, help=f"{help} (default: no)", default=None, **options)
        else:
            self._group.add_argument(flag, help=f"{help} (default: {default})", **options)


def finetune(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `graddrop finetune`: a flag for every setting of a run."""
    parser.add_argument(
        "--config", type=Path, help="TOML or YAML file with any of the settings below; flags win"
    )
    parser.add_argument("--task", metavar=_choice(TASKS), help="what is learnt")
    parser.add_argument("--data", help=_DATA)
    parser.add_argument(
        "--verify", action="store_true", default=None, help="check the archive's checksum"
    )
    parser.add_argument("--output", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where a killed run stopped")

    add = _Fields(parser.add_argument_group("model and method"), FinetuneConfig)
    methods = "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
    preset = "the method's"
    add("--model", "name on the Hub, folder, or tiny: random weights")
    add("--method", methods, metavar=_choice(METHODS))
    add(
        "--drop-prob",
        "probability that an entry is dropped",
        preset,
        type=float,
        nargs="+",
        metavar="P",
    )
    add(
        "--drop-schedule",
        "several: one for each epoch, or from the first to the second",
        metavar=_choice(DROP_SCHEDULES),
    )
    add(
        "--exempt",
        "parameters that are never masked: " + ", ".join(EXEMPTIONS),
        nargs="*",
        metavar="KIND",
    )
    add("--granularity", "what shares one decision: element, row, tensor or layer", preset)
    add("--period", "how long a mask lives: step, epoch, run, or steps", preset, type=_period)
    add("--site", "where the mask acts: grad, update or freeze", preset)
    add("--rescale", "scale what is kept", preset, action=argparse.BooleanOptionalAction)
    add("--mask-batches", "of whose gradients masks are made", "as many as published", type=int)
    add("--unfreeze-over", "share of the training", "1", type=float)
    add("--seed", "of weights, data order, dropout and masks", type=int)

    add = _Fields(parser.add_argument_group("recipe"), FinetuneConfig)
    published = "the recipe's"
    add("--recipe", "the published one, by size of model", metavar=_choice(RECIPES))
    add("--epochs", "passes over the training set", published, type=float)
    add("--max-steps", "optimizer steps, in place of --epochs", type=int)
    add("--batch-size", "examples per optimizer step and device", published, type=int)
    add("--accumulation", "micro-batches that make up a batch", type=int)
    add("--lr", "peak learning rate", published, type=float)
    add("--weight-decay", "decoupled, not of biases and norms", type=float)
    add("--warmup-steps", "optimizer steps of linear warm-up", type=int)
    add("--max-grad-norm", "bound of the unmasked gradients' norm", type=float)
    add("--max-length", "sub-words per model input", published, type=int)
    add("--precision", "of the arithmetic", metavar=_choice(PRECISIONS))
    add("--processes", "refused if the launcher starts others", "those of the launcher", type=int)
    add("--activation-checkpointing", "saves memory, costs time", action="store_true")

    add = _Fields(parser.add_argument_group("evaluation, checkpoints"), FinetuneConfig)
    add("--languages", "two-letter codes", "all that are found", nargs="*", metavar="CODE")
    add("--evaluate", f"what is scored: {', '.join(EVALUATIONS)}", nargs="+", metavar="SPLIT")
    add("--eval-batch-size", "examples per batch of evaluation", type=int)
    add("--select", "whose weights are kept", metavar=_choice(SELECTIONS))
    add("--patience", "evaluations without a better score", "never stop", type=int)
    add("--eval-all", "learning curves of all languages", action="store_true")
    add("--eval-steps", "optimizer steps between evaluations", "once per epoch", type=int)
    add("--save-steps", "between checkpoints", "with each evaluation", type=int)
    add("--log-steps", "between entries of the learning curve", type=int)
    add("--report-to", "trackers, such as tensorboard", nargs="*", metavar="TRACKER")
    add("--keep-checkpoints", "when the run has finished", action="store_true")
    add("--write-predictions", "in the official format", action="store_true")
    add("--limit-train", "training examples to use", "all", type=int)
    add("--limit-eval", "examples to use of each file", "all", type=int)


def pretrain(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `graddrop pretrain`."""
    parser.add_argument("--text", required=True, help="folder with one <language>.txt each")
    parser.add_argument("--output", required=True, help="model folder to make")
    add = _Fields(parser, PretrainConfig)
    add("--vocab-size", "most sub-words of the tokenizer", type=int)
    add("--hidden-size", f"width of the layers, a multiple of {HEAD_SIZE}", type=int)
    add("--layers", "number of layers", type=int)
    add("--max-length", "sub-words per line", type=int)
    add("--epochs", "passes over the lines", type=float)
    add("--batch-size", "lines per optimizer step", type=int)
    add("--lr", "peak learning rate", type=float)
    add("--mask-prob", "share of the sub-words to be guessed", type=float)
    add("--smoothing", "exponent for sampling small languages", type=float)
    add("--seed", "of weights, order and masks", type=int)


def demo(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `graddrop demo`."""
    parser.add_argument("--output", required=True, help="folder for data, model, runs and results")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the invented languages (default: %(default)s)"
    )


def report(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `graddrop report`."""
    parser.add_argument(
        "place",
        type=Path,
        metavar="RUNS",
        help="folder with runs, at any depth, or a file of scores as graddrop sweep keeps it",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="Markdown file, in place of report.md and .html"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="TOML or YAML: the tests that are to decide"
    )
    parser.add_argument(
        "--text-sizes", type=Path, metavar="FILE", help="JSON, {language: size of its text}"
    )
    parser.add_argument(
        "--data", help="the runs' data: adds the score of the most frequent label, for comparison"
    )


def sweep(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `graddrop sweep`."""
    parser.add_argument("config", type=Path, help="TOML or YAML file with the plan")
    parser.add_argument("--output", type=Path, help="folder of the sweep (default: the file's)")
    parser.add_argument(
        "--workers", type=int, help="processes (default: one per GPU; without any, one per core)"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="who runs them: this machine, or Ray (default: %(default)s)",
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


def score(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `graddrop score`."""
    parser.add_argument("--task", required=True, metavar=_choice(TASKS), help="what was learnt")
    parser.add_argument(
        "--predictions", required=True, type=Path, help="folder that holds TASK/LANGUAGE.prediction"
    )
    parser.add_argument("--data", required=True, help=_DATA)
    parser.add_argument("--verify", action="store_true", help="check the archive's checksum")
    parser.add_argument(
        "--split",
        choices=EVAL_SPLITS,
        default="test",
        help="what was predicted (default: %(default)s)",
    )
    parser.add_argument(
        "--languages",
        nargs="*",
        default=(),
        metavar="CODE",
        help="two-letter codes (default: all that are found)",
    )
    parser.add_argument("--json", type=Path, help="file for the scores in full precision")


ARGUMENTS: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "demo": demo,
    "pretrain": pretrain,
    "finetune": finetune,
    "report": report,
    "sweep": sweep,
    "score": score,
}
"""Of each command, by its name."""


def _choice(names: Any) -> str:
    return "{" + ",".join(names) + "}"


def _period(text: str) -> str | int:
    return int(text) if text.isdigit() else text
