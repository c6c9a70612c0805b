"""Controls: faults planted in the compiled kernels, each seen by its own check."""

import re

import pytest
import torch
from helpers.kernel_steps import halving, kept, step, still
from ptx.launches import executed
from ptx.races import Fault

from graddrop.testing import make_knobs, random_slot

KNOBS = [make_knobs()]


def planted(kernel, pattern, replacement, count=0):
    """An edit of one kernel's PTX, which must find something to change."""

    def edit(name, ptx):
        if name != kernel:
            return ptx
        changed, n = re.subn(pattern, replacement, ptx, count=count)
        assert n, f"{pattern} does not occur"
        return changed

    return executed(edit=edit)


def test_a_wrong_constant_makes_other_masks():
    """One bit of a multiplier of Philox."""
    slot = still(random_slot((1500,), seed=0))
    knobs = halving()
    expected = knobs.keep_mask(
        (1500,), stream_id=0, layer=None, shard=None, draw=0, device=torch.device("cpu")
    )
    assert torch.equal(*kept([slot], [knobs]), expected)
    with planted("dense_step", "-845247145", "-845247146"):
        assert not torch.equal(*kept([slot], [knobs]), expected)


def test_one_entry_too_many():
    """Compared with <= where < is right, the entry behind the last one is read."""
    too_far = planted("dense_step", r"setp\.lt\.s64", "setp.le.s64")
    with too_far, pytest.raises(Fault, match="out-of-bounds load"):
        step([random_slot((1025,), seed=0)], KNOBS)


def test_a_wide_load_off_its_boundary():
    """Four entries at once, one entry further."""
    wide = r"(ld\.global\.v4\.b32 \{[^}]*\}, \[ %rd\d+ \+) 0 \]"
    shifted = planted("dense_step", wide, r"\1 4 ]")
    with shifted, pytest.raises(Fault, match="misaligned load of 16 bytes"):
        step([random_slot((16 * 1024,), seed=0)], KNOBS)


def test_two_programs_on_one_chunk():
    """Every program takes the first chunk."""
    with planted("dense_step", r"%ctaid\.x", "0"), pytest.raises(Fault, match="race"):
        step([random_slot((2 * 16 * 1024,), seed=0)], KNOBS)


def test_counters_read_too_late():
    """Without the barrier before the arrival, a thread may read counters that have advanced."""
    slots = [random_slot((3,), seed=i, stream_id=i) for i in range(130)]
    step(slots, KNOBS)  # the kernel as it is orders its programs
    with planted("prepare", r"bar\.sync\s+0;", "", count=1), pytest.raises(Fault, match="race"):
        step(slots, KNOBS)
