"""The command `graddrop finetune`."""

import argparse
import dataclasses
from typing import Any

from graddrop.xglue.config import PRECISIONS, SELECTIONS, FinetuneConfig
from graddrop.xglue.methods import EXEMPTIONS, METHODS
from graddrop.xglue.tasks import EVAL_SPLITS, TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--task", required=True, choices=tuple(TASKS))
    parser.add_argument("--data", required=True, help="folder that holds POS/, NER/, ...")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where a killed run stopped")

    model = parser.add_argument_group("model and method")
    model.add_argument("--model", help="name on the Hub, folder, or tiny (default)")
    model.add_argument("--method", choices=tuple(METHODS), help=_method_help())
    model.add_argument("--drop-prob", type=float, help="probability that an entry is dropped")
    model.add_argument(
        "--exempt", nargs="*", choices=tuple(EXEMPTIONS), help="parameters that are never masked"
    )
    model.add_argument("--seed", type=int, help="of weights, data order, dropout and masks")

    recipe = parser.add_argument_group("recipe (default: the task's published one)")
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

    evaluation = parser.add_argument_group("evaluation, checkpoints")
    evaluation.add_argument("--languages", nargs="*", help="default: all that are found")
    evaluation.add_argument("--eval-batch-size", type=int)
    evaluation.add_argument(
        "--select", choices=SELECTIONS, help="whose weights are kept (default: en-dev)"
    )
    evaluation.add_argument(
        "--eval-all", action="store_true", default=None, help="learning curves of all languages"
    )
    evaluation.add_argument("--eval-steps", type=int, help="default: once per epoch")
    evaluation.add_argument("--save-steps", type=int, help="default: with each evaluation")
    evaluation.add_argument("--log-steps", type=int)
    evaluation.add_argument("--keep-checkpoints", action="store_true", default=None)
    evaluation.add_argument("--limit-train", type=int, help="training examples to use")
    evaluation.add_argument("--limit-eval", type=int, help="examples to use of each file")


def run(args: argparse.Namespace) -> int:
    """Run it and print the table of scores."""
    from graddrop.xglue.train import finetune

    result = finetune(config_from(args), resume=args.resume)
    print(score_table(result))
    print(f"\nWritten to {args.output}")
    return 0


def config_from(args: argparse.Namespace) -> FinetuneConfig:
    """Return the configuration that a parsed command line stands for."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(FinetuneConfig):
        value = getattr(args, field.name)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return FinetuneConfig(**given)


def score_table(result: dict[str, Any]) -> str:
    """Render a result: one row per language, one column per split and metric, in per cent."""
    scores = result["scores"]
    columns = [
        (split, metric)
        for split in EVAL_SPLITS
        for metric in (next(iter(scores[split].values())) if scores[split] else ())
    ]
    languages = sorted({language for split in EVAL_SPLITS for language in scores[split]})
    heads = [f"{split} {metric}" for split, metric in columns]
    lines = [" ".join([f"{result['task']:8}", *(f"{head:>20}" for head in heads)])]
    for language in languages:
        cells = [scores[split].get(language, {}).get(metric) for split, metric in columns]
        lines.append(_row(language, cells))
    lines.append(_row("mean", [result["mean"][split].get(metric) for split, metric in columns]))
    for split, languages in result["missing"].items():
        if languages:
            lines.append(f"no {split} file, skipped: {', '.join(languages)}")
    return "\n".join(lines)


def _row(name: str, cells: list[float | None]) -> str:
    shown = (f"{'-':>20}" if cell is None else f"{100 * cell:20.2f}" for cell in cells)
    return " ".join([f"{name:8}", *shown])


def _method_help() -> str:
    return "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items())
