"""How long steps take, each to its end on the device, measured in turn."""

from collections.abc import Callable, Mapping
from time import perf_counter

import torch


def seconds(run: Callable[[], object]) -> float:
    """How long ``run`` takes, until it returns."""
    start = perf_counter()
    run()
    return perf_counter() - start


def synchronized(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """``run``, and wait until the device has done it."""

    def run_to_the_end() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run_to_the_end


def seconds_in_turn(
    steps: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each step by round: A B C A B C, so that what the machine does meets all alike.

    Args:
        steps: by name.
        device: where they are made.
        rounds: that are kept.
        warm_up: rounds before them, which make states and compile.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warm_up + rounds):
        for name, step in steps.items():
            taken[name].append(seconds(synchronized(step, device)))
    return {name: found[warm_up:] for name, found in taken.items()}
