"""Functions that tests give to other processes; they load nothing that takes time."""

import os
import signal
import time
from pathlib import Path


def work(job: str) -> tuple[int, str | None, str]:
    """Do what the job says; return the process, its GPU, and the job.

    Raises:
        ValueError: If told so.
        RuntimeError: If told so.
    """
    what, _, rest = job.partition(" ")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "refuse":
        raise ValueError("refused")
    if what == "break":
        raise RuntimeError("broken")
    if what == "meet":  # whoever does the same on another device
        place = Path(rest.partition(" ")[2])
        place.mkdir(exist_ok=True)
        (place / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
        deadline = time.monotonic() + 60
        while len(list(place.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    if what == "linger" and not Path(rest).exists():  # the first time it is called
        Path(rest).touch()
        time.sleep(120)
    if what == "wait":
        Path(rest).write_text(str(os.getpid()))
        time.sleep(60)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), job


def page_faults(_: str) -> int:
    """Pages that are asked for anew while tensors of 4 to 100 MB come and go like a step's."""
    import resource

    import torch

    def step() -> None:
        activations = [torch.ones(1_000_000 * (1 + i % 4)) for i in range(12)]
        activations.append(torch.ones(25_000_000))

    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
