"""What a step of each published method costs, on the CPU or a GPU.

    python -m bench.methods --json bench/results/methods-cpu.json

Steps every preset of `graddrop.methods` on the parameters of an encoder of the size of XLM-R Base,
all of which have gradients, each step after one of torch's fused AdamW, which masks nothing. The
table has medians and quartiles over rounds of the ratio of both. What layers that a method drops
save of the backward pass is no part of it: `bench.whole_step` has that.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.origin import origin
from bench.sizes import SIZES
from bench.timing import seconds_in_turn
from graddrop import FusedGradDropAdamW
from graddrop.categories import by_category
from graddrop.mask_makers import random_scores, top_masks
from graddrop.methods import PRESETS

XLMR_BASE = SIZES["encoder"].scaled(width=768, vocabulary=250_002)
LR = 1e-6


def stepper(name: str, model: Any) -> Callable[[], object]:
    """One preset's step at half of what it can drop; LISA trains two layers, BAdam one.

    Args:
        name: of the preset.
        model: whose parameters have gradients.
    """
    preset = PRESETS[name]
    n_layers = model.config.num_hidden_layers
    trained = {"lisa": 2, "badam": 1}.get(name)
    drop_prob = 0.5 if trained is None else 1 - trained / n_layers
    named = list(model.named_parameters())
    groups = by_category(model) if preset.categories else named
    optimizer = FusedGradDropAdamW(groups, lr=LR, drop_prob=drop_prob, **preset.knobs)
    if preset.knobs.get("period") == "epoch":
        optimizer.new_mask(0)
    if preset.made is not None:  # which entries they are does not matter here
        within = preset.made.within
        scores = random_scores({param: value for param, value in named if within in param})
        optimizer.load_masks(top_masks(scores, density=0.5))
    return optimizer.step


def measure(model: Any, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Seconds of each method's steps, and of torch's just before, by round.

    Args:
        model: whose parameters are stepped.
        rounds: at least two, so that there are quartiles.
        device: where it is.
    """
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-3)
    fused = torch.optim.AdamW(model.parameters(), lr=LR, fused=True).step
    rows = []
    for name in PRESETS:
        steps: dict[str, Callable[[], object]] = {"fused": fused, "method": stepper(name, model)}
        seconds = seconds_in_turn(steps, device, rounds=rounds, warm_up=2)
        rows.append({"method": name, "seconds": seconds})
        del steps  # its moments make room for the next
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of what was measured."""
    lines = ["| method | ms | / torch fused | quartiles |", "|---|--:|--:|--:|"]
    for row in rows:
        ours, theirs = row["seconds"]["method"], row["seconds"]["fused"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        lines.append(
            f"| [{row['method']}](methods/{row['method']}.md) | {1e3 * statistics.median(ours):.1f}"
            f" | {ratio:.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9)
    for name in ("--layers", "--width", "--vocabulary"):
        parser.add_argument(name, type=int, help="default: those of XLM-R Base")
    parser.add_argument("--json", type=Path, required=True, help="file for the record")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    device = torch.device(args.device)
    size = XLMR_BASE.scaled(args.layers, args.width, args.vocabulary)
    rows = measure(size.build(args.device), args.rounds, device)
    args.json.write_text(json.dumps({**origin(device), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
