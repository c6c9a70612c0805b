"""GPU hours of fine-tuning on XGLUE, estimated by arithmetic; nothing is measured here.

    python -m bench.hours --tflops 125

Training takes 6 operations per weight and token, evaluation 2 (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1), counting the weights of the layers: embeddings are looked up. Every
example counts as long as the task's longest input, so real runs, which pad less, do less; that long
contexts of MLQA are cut into several windows is not counted, and they do more.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from graddrop.xglue.tasks import TASKS

SECONDS = 3600


@dataclass(frozen=True)
class Examples:
    """How many examples a task has.

    Attributes:
        train: in English.
        evaluated: dev and test of all languages together, once.
        english_dev: what is evaluated after each epoch to choose the weights.
    """

    train: int
    evaluated: int
    english_dev: int


# From the files of the official archive; where they differ by language, the largest stands for all.
EXAMPLES = {
    "ner": Examples(14_042, 4 * (3_252 + 5_202), 3_252),
    "pos": Examples(25_377, 18 * (2_215 + 2_215), 2_215),
    "nc": Examples(100_000, 5 * 20_000, 10_000),
    "mlqa": Examples(87_599, 7 * (1_148 + 11_590), 1_148),
    "xnli": Examples(392_702, 15 * (2_490 + 5_010), 2_490),
    "paws-x": Examples(49_401, 4 * 4_000, 2_000),
    "qadsm": Examples(100_000, 3 * 20_000, 10_000),
    "wpr": Examples(99_997, 7 * 20_000, 10_000),
    "qam": Examples(100_000, 3 * 20_000, 10_000),
}


def layer_weights(layers: int, hidden: int) -> int:
    """Return the weights of an encoder's layers: 4 matrices of attention, 2 of 4 times the width.

    Args:
        layers: Number of layers.
        hidden: Width of the model.
    """
    return layers * 12 * hidden * hidden


def operations(task: str, weights: int) -> tuple[float, float]:
    """Count the floating-point operations of one run by its published recipe for large models.

    Args:
        task: Name of the task.
        weights: Of the layers.

    Returns:
        Those of training, those of all evaluations.
    """
    recipe, examples = TASKS[task].recipe_for("large"), EXAMPLES[task]
    trained = examples.train * recipe.epochs * recipe.max_length
    evaluated = (examples.evaluated + recipe.epochs * examples.english_dev) * recipe.max_length
    return 6.0 * weights * trained, 2.0 * weights * evaluated


def render(tflops: float, layers: int = 24, hidden: int = 1024) -> str:
    """Return the estimate as a Markdown table.

    Args:
        tflops: Operations per second that the GPU sustains, in units of 10^12: an assumption.
        layers: Of the model.
        hidden: Its width.
    """
    weights = layer_weights(layers, hidden)
    lines = ["| task | M tokens trained | training h | evaluation h |", "|---|--:|--:|--:|"]
    totals = [0.0, 0.0, 0.0]
    for task in TASKS:
        hours = [some / (tflops * 1e12) / SECONDS for some in operations(task, weights)]
        tokens = operations(task, weights)[0] / (6.0 * weights) / 1e6
        totals = [a + b for a, b in zip(totals, (tokens, *hours), strict=True)]
        lines.append(f"| {task} | {tokens:,.0f} | {hours[0]:.2f} | {hours[1]:.2f} |")
    lines.append("| all | {:,.0f} | {:.2f} | {:.2f} |".format(*totals))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tflops", type=float, required=True, help="what the GPU sustains: assume")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    args = parser.parse_args(argv)
    print(render(args.tflops, args.layers, args.hidden))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
