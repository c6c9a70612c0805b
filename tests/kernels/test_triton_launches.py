"""Laws of the launcher: how many launches a step makes, and how each shares out its work."""

import pytest
import torch

from graddrop.step.backends import make_executor
from graddrop.testing import DTYPES, make_knobs, random_slot

pytest.importorskip("triton", reason="Triton is not installed")
from graddrop.kernels import abi
from graddrop.kernels.gpu.options import tiles_per_chunk, vector_width

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.gpu


def test_one_launch_moves_all_tensors_of_a_signature():
    """Launches per step: one that counts, then one per (dtypes, layout), not one per tensor."""
    slots = [random_slot((n,), seed=n, stream_id=n, device=DEVICE) for n in range(1, 30)]
    knobs = [make_knobs()]
    assert make_executor("triton", slots, knobs, DEVICE).n_launches == 2
    for n in (5, 7):
        dtypes = DTYPES["bf16 with fp32 moments"]
        slots.append(random_slot((n,), dtypes, seed=n, stream_id=30 + n, device=DEVICE))
    assert make_executor("triton", slots, knobs, DEVICE).n_launches == 3


def test_work_per_program_follows_the_total():
    """A tile per program until each of 132 processors has two; 16 where there is enough."""
    assert [tiles_per_chunk(n, 132) for n in (1, 977, 264 * 4, 264 * 16, 10**6)] == [
        1,
        3,
        4,
        16,
        16,
    ]


def test_the_launcher_names_its_modes_by_the_tables():
    """Vector width falls back where 8 elements per thread would spill."""
    bf16 = DTYPES["all bf16"]
    element = 1 << (abi.SOURCE_ELEMENT * abi.N_SITES + abi.SITE_GRAD)
    row = 1 << (abi.SOURCE_ROW * abi.N_SITES + abi.SITE_GRAD)
    assert vector_width(bf16, 1 | element) == 8
    assert vector_width(bf16, 1 | element | row) == 4
    assert vector_width(DTYPES["fp32"], element) == 4
