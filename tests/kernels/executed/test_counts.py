"""What an executed step moves, counted in sectors of 32 bytes."""

import pytest
import torch

from graddrop.step.backends import make_executor
from graddrop.testing import DTYPES, make_knobs, random_slot


@pytest.mark.parametrize(("dtypes", "load", "store"), [("fp32", 16, 12), ("all bf16", 8, 6)])
def test_a_full_chunk_moves_each_byte_once(execution, dtypes, load, store):
    """Four tensors in, three out; the tables add less than a hundredth."""
    n = 4 * 16 * 1024
    slot = random_slot((n,), DTYPES[dtypes], seed=0)
    executor = make_executor("triton", [slot], [make_knobs()], torch.device("cpu"))
    executor.begin([make_knobs()], torch.zeros(2, dtype=torch.int64), None, None)
    executor.step(None)
    (step,) = (launch for launch in execution.launches if launch.kernel == "dense_step")
    assert load <= step.counts.bytes_of("load") / n <= 1.05 * load
    assert step.counts.bytes_of("store") / n == store
