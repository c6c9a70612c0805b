"""Laws of CUDA streams: tables live until every stream that reads them is done."""

import pytest
import torch

from graddrop.step.backends import make_executor
from graddrop.testing import make_knobs, random_slot

pytest.importorskip("triton", reason="Triton is not installed")
from graddrop.kernels.gpu.streams import keep_for_current_stream


class Table:
    """Remembers the streams that it is kept for."""

    def __init__(self):
        self.kept_for = []

    def record_stream(self, stream):
        """As a tensor's."""
        self.kept_for.append(stream)


@pytest.mark.parametrize(
    "device, capturing, kept_for", [("cuda", False, ["s1"]), ("cuda", True, []), ("cpu", False, [])]
)
def test_tables_are_kept_for_the_stream_that_reads_them(device, capturing, kept_for, monkeypatch):
    """Not in a capture, whose graph keeps them, nor on a CPU."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"s{device.index}")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    tables = [Table(), Table()]
    keep_for_current_stream(torch.device(device, 1 if device == "cuda" else None), tables)
    assert [table.kept_for for table in tables] == [kept_for] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("clipped", [False, True])
def test_no_table_is_forgotten(clipped):
    """Every tensor that the launcher holds, but what lies on the host."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slots = [random_slot(shape, seed=0, device=device) for shape in ((1500,), (9, 3))]
    launcher = make_executor("triton", slots, [make_knobs()], device)._launcher
    if clipped:
        launcher._sums = launcher._plan_sums()
    on_host = {"_host_table", "_aligned"}
    held = [value for name, value in vars(launcher).items() if name not in on_host]
    held += [launch.chunks for launch in launcher._launches]
    expected = {id(each) for value in held for each in _tensors(value)}
    assert {id(table) for table in launcher._tables()} == expected
    assert len(expected) >= 7 + 2 * clipped


def _tensors(value):
    values = value if isinstance(value, tuple | list) else [value]
    return [each for each in values if isinstance(each, torch.Tensor)]
