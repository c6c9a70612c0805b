"""Laws of resuming: k steps, a checkpoint, a new process and n steps are k + n steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.root import ROOT
from helpers.small_runs import assert_same, differs, make_params, params_of, snapshot, train

import graddrop
from graddrop import FusedGradDropAdamW, schedules

IMPORTED_FROM = Path(__file__).parent, ROOT / "tests", Path(graddrop.__file__).parents[1]
SHAPES = ((5, 7), (6, 4), (70,))
DTYPES = (torch.float32, torch.bfloat16)


def make_optimizer(device: str, backend: str, **knobs: object) -> FusedGradDropAdamW:
    """The optimizer under test: groups of several kinds, a schedule, masks of all periods."""
    params = [param for dtype in DTYPES for param in make_params(SHAPES, dtype, device)]
    groups = [
        {"params": params[:2], "period": 3},
        {"params": params[2:4], "granularity": "row", "period": "epoch", "rescale": True},
        {"params": params[4:5], "site": "freeze", "weight_decay": 0.0},
        {"params": params[5:], "site": "update", "rescale": "alignment"},
    ]
    knobs = {"lr": 1e-2, "drop_prob": schedules.Linear(0.2, 0.8, 8), "seed": 11} | knobs
    optimizer = FusedGradDropAdamW(groups, backend=backend, **knobs)
    optimizer.new_mask(0)
    return optimizer


def run(optimizer: FusedGradDropAdamW, steps: range) -> None:
    """Train; epochs end after steps 2 and 5."""
    for step in steps:
        train(optimizer, range(step, step + 1))
        if step % 3 == 2:
            optimizer.new_mask()


def save(optimizer: FusedGradDropAdamW, path: Path) -> None:
    """A checkpoint of parameters and optimizer."""
    params = [param.detach() for param in params_of(optimizer)]
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, path)


def load(optimizer: FusedGradDropAdamW, path: Path) -> None:
    """Go on from a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    with torch.no_grad():
        for param, value in zip(params_of(optimizer), checkpoint["params"], strict=True):
            param.copy_(value)
    optimizer.load_state_dict(checkpoint["optimizer"])


def resume_and_save(folder: Path, backend: str, device: str, first: int, last: int) -> None:
    """What the new process does."""
    optimizer = make_optimizer(device, backend)
    load(optimizer, folder / "before.pt")
    run(optimizer, range(first, last))
    torch.save(snapshot(optimizer), folder / "after.pt")


NEW_PROCESS = """
import os, sys, warnings
warnings.simplefilter("error")
if sys.argv[3] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
from pathlib import Path
import test_resume
test_resume.resume_and_save(Path(sys.argv[1]), *sys.argv[2:4], *map(int, sys.argv[4:]))
"""


def test_a_new_process_goes_on_where_the_old_one_stopped(backend, device, tmp_path):
    """k steps, save, load in a new process, n steps: the k + n steps of one run, bit for bit."""
    optimizer = make_optimizer(str(device), backend)
    run(optimizer, range(4))  # in the middle of a period and of an epoch
    save(optimizer, tmp_path / "before.pt")
    subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, tmp_path, backend, str(device), "4", "7"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, IMPORTED_FROM))},
        check=True,
    )
    run(optimizer, range(4, 7))
    resumed = torch.load(tmp_path / "after.pt", weights_only=True)
    assert_same(resumed, snapshot(optimizer))


@pytest.mark.parametrize("miscounted", ["steps_finished", "masks_begun"])
def test_a_run_that_miscounts_goes_elsewhere(tmp_path, miscounted):
    """Control: each of the two counters in the checkpoint decides about masks."""
    optimizer = make_optimizer("cpu", "reference")
    run(optimizer, range(4))
    save(optimizer, tmp_path / "before.pt")
    run(optimizer, range(4, 7))
    checkpoint = torch.load(tmp_path / "before.pt", weights_only=True)
    for group in checkpoint["optimizer"]["param_groups"]:
        group[miscounted] += 1
    torch.save(checkpoint, tmp_path / "before.pt")
    resume_and_save(tmp_path, "reference", "cpu", 4, 7)
    resumed = torch.load(tmp_path / "after.pt", weights_only=True)
    assert differs(resumed, snapshot(optimizer))
