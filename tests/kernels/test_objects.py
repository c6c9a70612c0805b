"""Laws of looking at many tensors in one call: every difference is seen, in both ways to look."""

import gc
import weakref

import pytest
import torch
from torch.nn import Parameter

from graddrop.kernels import abi
from graddrop.kernels.cpu import objects
from graddrop.kernels.cpu.objects import Follower, Records


@pytest.fixture(autouse=True, params=["library", "Python"])
def _way(request, monkeypatch):
    """Both ways to look."""
    if request.param == "Python":
        monkeypatch.setattr(objects, "_looker", lambda: None)
    elif objects._looker() is None:
        pytest.skip("the CPU kernel is not built, or this torch has no table of C functions")


def tensors():
    """One of each kind that an optimizer holds, dimensions and dtypes of all sorts."""
    return [
        Parameter(torch.zeros(3, 3)),
        torch.zeros(4, 1, 2, dtype=torch.bfloat16),
        torch.zeros(()),
        torch.zeros(0, dtype=torch.float64),
        torch.zeros(8, 6)[::2, ::3],
    ]


# What another tensor in the place of tensors()[index] differs in.
DIFFERENCES = {
    "address": (0, lambda t: torch.zeros(3, 3)),
    "dtype": (0, lambda t: t.detach().view(torch.int32)),
    "width of the dtype": (1, lambda t: t.view(torch.int16)),
    "strides": (0, lambda t: t.detach().t()),
    "shape": (1, lambda t: t.view(2, 2, 2)),
    "dimensions": (1, lambda t: t.view(8)),
    "more dimensions than any": (1, lambda t: t.view(2, 1, 2, 1, 2)),
    "offset": (4, lambda t: t.as_strided(t.shape, t.stride(), 1)),
    "layout": (0, lambda t: torch.zeros(3, 3).to_sparse()),
    "device": (2, lambda t: torch.zeros((), device="meta")),
}


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("may_move", [False, True])
def test_every_difference_is_seen(name, may_move):
    """In any one tensor; where it lies only if it may not move."""
    recorded = tensors()
    records = Records(recorded, may_move=may_move)
    assert records.hold(list(recorded))
    index, change = DIFFERENCES[name]
    others = list(recorded)
    others[index] = change(recorded[index])
    assert records.hold(others) == (may_move and name in ("address", "offset"))
    others[index] = None
    assert records.hold(others)


@pytest.mark.parametrize("index", range(5))
def test_an_object_may_come_to_describe_something_else(index):
    """Assigning to .data gives the same object other memory, which is why it is looked at."""
    recorded = tensors()
    records = Records(recorded)
    assert records.hold()
    recorded[index].data = torch.ones(5)
    assert not records.hold()


def test_what_may_move_is_not_kept():
    """Gradients' memory is free between two steps."""
    grad = torch.zeros(3)
    records = Records([grad], may_move=True)
    gone = weakref.ref(grad)
    del grad
    gc.collect()
    assert gone() is None
    assert records.hold([torch.zeros(3)])
    assert not records.hold([torch.zeros(4)])


def test_a_column_follows_tensors():
    """Wherever they lie, whether any is missing; other columns stay."""
    old = [torch.zeros(5), torch.zeros(7), torch.zeros(0)]
    table = torch.full((3, 4), -7)
    before = torch.tensor([-8, 16, 0])
    addresses = torch.tensor([each.data_ptr() for each in old])
    table[:, 2] = addresses + before
    follower = Follower(addresses, before, table[:, 2])
    assert follower.follow(old) is False
    new = [old[0], torch.zeros(9)[2:], None]
    assert follower.follow(new) is True
    assert table[:, 2].tolist() == [old[0].data_ptr() - 8, new[1].data_ptr() + 16, abi.NO_GRAD]
    assert follower.follow(new) is False
    assert follower.follow(old) is True
    assert table[:, 2].tolist() == [
        each.data_ptr() + more for each, more in zip(old, (-8, 16, 0), strict=True)
    ]
    assert (table[:, [0, 1, 3]] == -7).all()


def test_freed_memory_is_seen():
    """An empty tensor has none and needs none."""
    grads = [torch.zeros(0), torch.zeros(5)]
    addresses = torch.tensor([each.data_ptr() for each in grads])
    follower = Follower(addresses, torch.zeros(2, dtype=torch.int64), addresses.clone())
    assert follower.follow(grads) is False
    grads[1].untyped_storage().resize_(0)
    moved = follower.follow(grads)  # no tensor without memory may be shown in a message
    assert moved is None
