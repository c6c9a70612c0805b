"""A checkout against an earlier one, step by step in turn: what a change gained or cost.

    git worktree add ../before REVISION
    (cd ../before && python setup.py build_ext --inplace)
    python -m bench.against ../before

Each steps in a process of its own, on the CPU, while the other one waits; and so does torch's fused
AdamW, which masks nothing. Ratios are taken within a round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter


@dataclass(frozen=True)
class Case:
    """What is stepped.

    Attributes:
        n_tensors: how many.
        size: entries of each.
        knobs: of our optimizer.
        absent: whether a thirteenth of the gradients is missing, others in each step.
    """

    n_tensors: int
    size: int
    knobs: dict[str, Any] = field(default_factory=dict)
    absent: bool = False

    @property
    def is_large(self) -> bool:
        """Whether memory decides, not Python."""
        return self.n_tensors * self.size > 10_000

    def renew(self, params: Sequence[Parameter], step: int) -> None:
        """Give the parameters the gradients of a step: new tensors, as after zero_grad()."""
        for index, param in enumerate(params):
            missing = self.absent and step > 0 and index % 13 == step % 13
            param.grad = None if missing else torch.full((self.size,), 1e-3)


ROOT = Path(__file__).resolve().parents[1]
LARGE = 50_000_000
CASES = {
    "one large tensor": Case(1, LARGE),
    "one large tensor, no mask": Case(1, LARGE, {"drop_prob": 0.0}),
    "one large tensor, clipped": Case(1, LARGE, {"max_grad_norm": 1.0}),
    "one large tensor, clipped by the masked norm": Case(
        1, LARGE, {"max_grad_norm": 1.0, "masked_norm": True}
    ),
    "10,000 tensors of 2,048 entries": Case(10_000, 2_048),
    "391 tensors of 4 entries": Case(391, 4),
    "391 tensors of 4 entries, some without gradients": Case(391, 4, absent=True),
    "10 tensors of 4 entries": Case(10, 4),
    "one tensor of 4 entries": Case(1, 4),
}
ROUNDS = 15
STEPS = {True: 1, False: 40}  # per round, of large tensors, of small ones: their median counts
PAUSE = 0.02  # seconds in which the other process's threads go to sleep


def serve(name: str, fused: bool) -> None:
    """Step when standard input says so; print seconds, then Python calls per step."""
    import graddrop

    case = CASES[name]
    if not case.is_large:
        torch.set_num_threads(1)  # what is measured is Python
    params = [Parameter(torch.randn(case.size)) for _ in range(case.n_tensors)]
    if fused:
        step = torch.optim.AdamW(params, fused=True).step
    else:
        step = graddrop.FusedGradDropAdamW(params, **case.knobs).step
    print(Path(graddrop.__file__).parents[1], flush=True)
    number = 0
    for _ in sys.stdin:
        taken = []
        for _ in range(STEPS[case.is_large]):
            case.renew(params, number)
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
            number += 1
        print(statistics.median(taken), flush=True)
    print(_python_calls(step), flush=True)


def _python_calls(step: Callable[[], object]) -> int:
    """Calls of Python functions in one step."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    return calls


class Stepper:
    """A process that makes the steps of one case in one checkout."""

    def __init__(self, case: str, checkout: Path, fused: bool = False) -> None:
        command = [sys.executable, __file__, "--serve", case, *(["--fused"] if fused else [])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )
        served = self._read()
        if Path(served) != checkout:
            raise SystemExit(f"expected to measure {checkout}, but {served} was imported")

    def step(self) -> float:
        """Seconds of one step."""
        time.sleep(PAUSE)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def finish(self) -> int:
        """End the process; Python calls per step."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        calls = int(self._read())
        self._process.wait()
        return calls

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit("a checkout cannot step this case; its error is above")
        return line


def measure(case: str, before: Path, now: Path) -> None:
    """Print what a step of one case takes in both checkouts, and by torch's fused AdamW."""
    steppers = {
        "before": Stepper(case, before),
        "now": Stepper(case, now),
        "torch fused": Stepper(case, now, fused=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in steppers}
    for round_ in range(ROUNDS + 1):
        for name, stepper in steppers.items():
            seconds = stepper.step()
            if round_:  # the first one makes the state
                taken[name].append(seconds)
    print(case)
    for name, stepper in steppers.items():
        ratios = [a / b for a, b in zip(taken[name], taken["before"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  {name:12} {1e3 * statistics.median(taken[name]):8.3f} ms"
            f"  {middle:.2f} ({low:.2f} to {high:.2f}) of before"
            f"  {stepper.finish():6} Python calls",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, nargs="?", help="a checkout with its extension built")
    parser.add_argument("now", type=Path, nargs="?", default=ROOT, help="default: this one")
    parser.add_argument("--case", action="append", choices=CASES, help="only this; repeatable")
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--fused", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve, args.fused)
        return 0
    for checkout in (args.before, args.now):
        if checkout is None or not (checkout / "graddrop").is_dir():
            parser.error(f"expected a checkout of this project, got {checkout}")
    for case in args.case or CASES:
        measure(case, args.before.resolve(), args.now.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
