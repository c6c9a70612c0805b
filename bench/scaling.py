"""How the time of a step grows with parameters, tensors and dtype, on the CPU or a GPU.

    python -m bench.scaling --device cpu --json bench/results/scaling-cpu.json

Draws the same beside the record. Every point is the median of interleaved rounds: ours, then
torch's fused AdamW, which masks nothing, on tensors of the same shapes.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from bench.origin import origin
from bench.peers import LR, one_pass
from bench.timing import seconds_in_turn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOTAL = 1 << 22  # entries of all tensors, where their number grows
ROUNDS = 9


def points(largest: int) -> Iterator[dict[str, Any]]:
    """What is measured: one tensor of growing size, then more and more tensors of 4 M in all."""
    for dtype in DTYPES:
        for power in range(12, largest + 1, 2):
            yield {"dtype": dtype, "tensors": 1, "entries": 1 << power}
    for n_tensors in (1, 4, 16, 64, 256, 1024, 4096, 16384):
        yield {"dtype": "fp32", "tensors": n_tensors, "entries": TOTAL}


def measure(point: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Median seconds of a step, ours and torch's."""
    params = []
    for _ in range(point["tensors"]):
        size = point["entries"] // point["tensors"]
        param = Parameter(torch.zeros(size, dtype=DTYPES[point["dtype"]], device=device))
        param.grad = torch.full_like(param, 1e-3)
        params.append(param)
    steps: dict[str, Callable[[], object]] = {
        "graddrop": one_pass(params).step,
        "fused": torch.optim.AdamW(params, lr=LR, fused=True).step,
    }
    taken = seconds_in_turn(steps, device, rounds=ROUNDS, warm_up=1)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Two panels: time over entries of one tensor, by dtype; time over the number of tensors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    by_size, by_number = figure.subplots(1, 2)
    lines = (
        ("graddrop", "fp32", "GradDrop, fp32", "#D55E00", "-", "D"),
        ("graddrop", "bf16", "GradDrop, bf16 with fp32 moments", "#E69F00", "--", "D"),
        ("fused", "fp32", "torch fused, no mask, fp32", "#0072B2", "-", "o"),
        ("fused", "bf16", "torch fused, no mask, bf16 moments too", "#56B4E9", "--", "o"),
    )
    for name, dtype, label, color, dashes, marker in lines:
        style = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 4}
        grown = [row for row in rows if row["dtype"] == dtype and row["tensors"] == 1]
        grown = sorted({row["entries"]: row for row in grown}.values(), key=lambda r: r["entries"])
        by_size.plot(
            [row["entries"] for row in grown],
            [1e3 * row["seconds"][name] for row in grown],
            label=label,
            **style,
        )
        if dtype == "fp32":
            cut = [row for row in rows if row["entries"] == TOTAL and row["dtype"] == "fp32"]
            cut = sorted({row["tensors"]: row for row in cut}.values(), key=lambda r: r["tensors"])
            by_number.plot(
                [row["tensors"] for row in cut],
                [1e3 * row["seconds"][name] for row in cut],
                label=label,
                **style,
            )
    by_size.set_xlabel("entries of one tensor")
    by_number.set_xlabel(f"tensors, of {TOTAL:,} entries together")
    for axes in (by_size, by_number):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylabel("ms per step")
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--largest", type=int, default=26, help="power of two of the entries")
    parser.add_argument("--json", type=Path, required=True, help="record; a .png goes beside it")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    rows = []
    for point in points(args.largest):
        rows.append({**point, "seconds": measure(point, device)})
        ours, theirs = (1e3 * rows[-1]["seconds"][name] for name in ("graddrop", "fused"))
        print(
            f"{point['dtype']}  {point['tensors']:6,} tensors  {point['entries']:11,} entries  "
            f"GradDrop {ours:8.3f} ms  torch fused {theirs:8.3f} ms"
        )
    args.json.write_text(json.dumps({**origin(device), "rows": rows}, indent=1) + "\n")
    draw(rows, args.json.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
