"""Laws of alignment: entries may begin at any multiple of their size, wide accesses only at 16."""

from dataclasses import replace

import pytest
import torch

from graddrop.step.backends import make_executor
from graddrop.testing import DTYPES, make_knobs, random_slot

NAMES = ("param", "grad", "exp_avg", "exp_avg_sq")
CASES = pytest.mark.parametrize(
    ("name", "n_bytes"), [(name, n_bytes) for name in NAMES for n_bytes in (2, 4, 8, 12, 16, 20)]
)


def beginning_at(tensor, n_bytes):
    """The same values, so many bytes behind a boundary of 64 bytes."""
    room = torch.empty(tensor.numel() * tensor.element_size() + 128, dtype=torch.uint8)
    room = room.to(tensor.device)
    first = -room.data_ptr() % 64 + n_bytes
    part = room[first : first + tensor.numel() * tensor.element_size()]
    return part.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def slots(name, n_bytes, dtypes, device):
    """A tensor whose memory begins at boundaries, and its twin of which one part does not."""
    slot = random_slot((1300,), dtypes, seed=0, device=device)
    if n_bytes % getattr(slot, name).element_size():
        pytest.skip("no entry of this dtype begins there")

    def placed(odd):
        parts = {n: beginning_at(getattr(slot, n), n_bytes * (n == odd)) for n in NAMES}
        return replace(slot, step=slot.step.clone(), **parts)

    return placed(None), placed(name)


@CASES
@pytest.mark.parametrize("dtypes", ["fp32", "bf16 with fp32 moments"])
def test_any_alignment_gives_the_same_bits(backend, device, name, n_bytes, dtypes):
    """Where memory begins decides nothing of what becomes of an entry."""
    pair = slots(name, n_bytes, DTYPES[dtypes], device)
    for slot in pair:
        before = slot.param.clone()
        executor = make_executor(backend, [slot], [make_knobs()], device)
        executor.set_grads([slot.grad])
        executor.begin([make_knobs()], torch.zeros(2, dtype=torch.int64, device=device), None, None)
        executor.step(None)
        assert not torch.equal(slot.param, before)
    for part in ("param", "exp_avg", "exp_avg_sq"):
        assert torch.equal(*(getattr(slot, part) for slot in pair))


@CASES
@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_wide_accesses_are_at_multiples_of_16_bytes(name, n_bytes, dtypes):
    """One of the four that begins elsewhere is enough to leave them to narrow ones."""
    pytest.importorskip("triton", reason="Triton is not installed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for slot in slots(name, n_bytes, DTYPES[dtypes], device):
        executor = make_executor("triton", [slot], [make_knobs()], device)
        found += [launch.aligned for launch in executor._launcher._launches]
    assert found == [True, n_bytes % 16 == 0]
