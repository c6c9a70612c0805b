"""What a step takes beside its time: memory, the host, kernels of a GPU."""

import gc
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.timing import seconds

CALLS = 20  # of which the median is taken


def lacks(n_bytes: int, device: torch.device) -> str | None:
    """Why so much does not fit into a GPU's memory; None: it may, or the device is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(device)
    if n_bytes <= card.total_memory:
        return None
    return f"takes {n_bytes / 1e9:.1f} GB, {card.name} has {card.total_memory / 1e9:.1f}"


@dataclass
class Bytes:
    """Bytes of tensors that were made within :func:`memory`; None: not counted.

    Attributes:
        kept: of those that are still there at its end.
        peak: the most at a time.
    """

    kept: int | None = None
    peak: int | None = None


@contextmanager
def memory(device: torch.device) -> Iterator[Bytes]:
    """Count the memory that is taken within.

    The allocator of a GPU counts for itself. On the CPU torch's profiler writes down allocation by
    allocation, which is slow where there are many.
    """
    found = Bytes()
    gc.collect()  # what is no longer needed goes before, not within
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.kept = torch.cuda.memory_allocated(device) - before
        found.peak = torch.cuda.max_memory_allocated(device) - before
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield found
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    in_use = list(accumulate(c["args"]["Bytes"] for c in sorted(changes, key=itemgetter("ts"))))
    found.kept, found.peak = (in_use[-1], max(0, *in_use)) if in_use else (0, 0)


def host_seconds(step: Callable[[], object], params: Sequence[Tensor]) -> float:
    """How long ``step`` keeps the host, which does not wait for a GPU: median.

    Gradients lie elsewhere in each step than in the one before, as they may after ``zero_grad()``.

    Args:
        step: of ``params``.
        params: on one device, all with gradients.
    """
    device = params[0].device
    grads = [param.grad for param in params]
    places = grads, [param.grad.clone() for param in params if param.grad is not None]
    taken = []
    for call in range(1, CALLS + 1):
        for param, grad in zip(params, places[call % 2], strict=True):
            param.grad = grad
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(seconds(step))
    return statistics.median(taken)


def kernels(step: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """Kernels that ``step`` launches on a GPU, and their seconds without those in between."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize(device)
    ran = [
        event.time_range.elapsed_us()
        for event in profiled.events() or []
        # Copies are none, nor is the range that torch writes around each optimizer's step.
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Mem", "Optimizer."))
    ]
    return len(ran), 1e-6 * sum(ran)
