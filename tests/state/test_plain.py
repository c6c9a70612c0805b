"""Laws of knobs given in other forms than plain numbers: NumPy's, and tensors."""

import copy
from collections import namedtuple
from enum import IntEnum, StrEnum
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_params,
    params_of,
    snapshot,
    through_a_file,
    train,
)

from graddrop import FusedGradDropAdamW

Pair = namedtuple("Pair", "first second")


class Site(StrEnum):
    """Text with a name."""

    UPDATE = "update"


class Period(IntEnum):
    """A number with a name."""

    THREE = 3


KNOBS = {
    "drop_prob of 64 bits": ("drop_prob", np.float64(0.5), 0.5),
    "drop_prob of 32 bits": ("drop_prob", np.float32(0.5), 0.5),
    "drop_prob as a fraction": ("drop_prob", Fraction(1, 4), 0.25),
    "lr": ("lr", np.float64(0.25), 0.25),
    "lr of 16 bits": ("lr", np.float16(0.25), 0.25),
    "eps": ("eps", np.float32(0.5), 0.5),
    "weight_decay": ("weight_decay", np.int64(0), 0),
    "the first beta": ("betas", (np.float64(0.5), 0.75), (0.5, 0.75)),
    "the second beta": ("betas", (0.5, np.float32(0.75)), (0.5, 0.75)),
    "betas in a list": ("betas", [np.float64(0.5), 0.75], [0.5, 0.75]),
    "named betas": ("betas", Pair(0.5, 0.75), (0.5, 0.75)),
    "seed": ("seed", np.uint64((1 << 64) - 1), (1 << 64) - 1),
    "period": ("period", np.int64(3), 3),
    "a named period": ("period", Period.THREE, 3),
    "site": ("site", np.str_("freeze"), "freeze"),
    "a named site": ("site", Site.UPDATE, "update"),
}


def assert_plain(value, expected):
    """Equal, and of Python's own types, inside a pair too."""
    assert value == expected and type(value) is type(expected)
    if isinstance(expected, (tuple, list)):
        assert [type(each) for each in value] == [type(each) for each in expected]


@pytest.mark.parametrize("case", KNOBS)
def test_a_checkpoint_holds_plain_values(tmp_path, case):
    """Whatever number a knob accepts: of the constructor, a group, or set later in any group."""
    knob, given, expected = KNOBS[case]
    params = make_params(((3,), (4,), (5,)))
    by_argument = FusedGradDropAdamW(params, **{knob: copy.copy(given)})
    by_group = FusedGradDropAdamW(
        [{"params": params[:1]}, {"params": params[1:], knob: copy.copy(given)}]
    )
    later, unread = (
        FusedGradDropAdamW([{"params": [param]} for param in params]) for _ in range(2)
    )
    for optimizer in (later, unread):
        train(optimizer, 1)
        optimizer.param_groups[2][knob] = copy.copy(given)
    train(later, range(1, 2))
    for optimizer in (by_argument, by_group, later, unread):
        saved = through_a_file(optimizer.state_dict(), tmp_path)
        assert_plain(saved["param_groups"][-1][knob], expected)


def test_names_of_numpy_are_names(tmp_path):
    """Stream ids and layers may come from an array."""
    group = {"params": make_params(SMALL), "layers": list(np.arange(2))}
    optimizer = FusedGradDropAdamW([group | {"stream_ids": np.array([7, 9])}])
    (saved,) = through_a_file(optimizer.state_dict(), tmp_path)["param_groups"]
    assert saved["stream_ids"] == [7, 9] and saved["layers"] == [0, 1]


def test_a_list_stays_the_list_that_it_is():
    """Who holds a group's list of betas may go on to set them."""
    betas = [np.float64(0.5), 0.75]
    optimizer, judge = (FusedGradDropAdamW(make_params(SMALL), betas=betas) for _ in range(2))
    train(optimizer, 1)
    betas[0] = np.float64(0.25)
    judge.param_groups[0]["betas"] = (0.5, 0.75)
    train(judge, 1)
    judge.param_groups[0]["betas"] = (0.25, 0.75)
    for each in (optimizer, judge):
        train(each, range(1, 3))
    assert_same(snapshot(optimizer), snapshot(judge))


@pytest.mark.parametrize("betas", [[0.5, 0.75], (0.5, 0.75)], ids=["list", "tuple"])
@pytest.mark.parametrize("own", [[0.5, 0.75], (0.5, 0.75)], ids=["list here", "tuple here"])
def test_what_is_loaded_is_saved_again(betas, own):
    """A pair is the list or the tuple that was loaded, as with torch.optim.AdamW."""
    for cls in (FusedGradDropAdamW, torch.optim.AdamW):
        saved, ours = (cls(make_params(SMALL), betas=each) for each in (betas, own))
        state_dict = saved.state_dict()
        ours.load_state_dict(copy.deepcopy(state_dict))
        assert ours.state_dict() == state_dict
        assert ours.param_groups[0]["betas"] is not betas


def tensor_betas(dtype=torch.float64):
    """Both as tensors; in float64 they are exactly what the floats are."""
    return torch.tensor(0.8, dtype=dtype), torch.tensor([0.95], dtype=dtype)


def test_betas_may_be_tensors(backend, device):
    """Steps are those of the floats; what is written into a tensor of any group is followed."""
    ours, judge = (
        FusedGradDropAdamW(
            [
                {"params": params[:1]},
                {"params": params[1:], "betas": betas},
            ],
            backend=backend,
        )
        for params, betas in (
            (make_params(SMALL, device=device), tensor_betas()),
            (make_params(SMALL, device=device), (0.8, 0.95)),
        )
    )
    written = ours.param_groups[1]["betas"]
    for step, (first, second) in enumerate([(0.8, 0.95), (0.5, 0.95), (0.5, 0.75)]):
        written[0].fill_(first)
        written[1].fill_(second)
        judge.param_groups[1]["betas"] = (first, second)
        for each in (ours, judge):
            train(each, range(step, step + 1))
        assert_same(snapshot(ours), snapshot(judge))


def test_a_state_of_adamw_with_tensor_betas_loads(tmp_path):
    """In silence; tensors that were here take the values where they are."""
    theirs = torch.optim.AdamW(make_params(SMALL), betas=tensor_betas(torch.float32))
    train(theirs, 2)
    saved = through_a_file(theirs.state_dict(), tmp_path)
    floats, tensors = (
        FusedGradDropAdamW(make_params(SMALL), betas=betas)
        for betas in ((0.9, 0.999), (torch.tensor(0.9), torch.tensor(0.999)))
    )
    held = tensors.param_groups[0]["betas"]
    for ours in (floats, tensors):
        ours.load_state_dict(saved)
        assert [float(beta) for beta in ours.param_groups[0]["betas"]] == pytest.approx([0.8, 0.95])
        train(ours, range(2, 3))
    assert all(a is b for a, b in zip(tensors.param_groups[0]["betas"], held, strict=True))


@pytest.mark.parametrize("tensors", [True, False])
def test_cyclic_schedulers_write_betas(tensors):
    """OneCycleLR moves the first beta, whatever form it has."""
    betas = tensor_betas(torch.float32) if tensors else (0.8, 0.95)
    optimizer = FusedGradDropAdamW(make_params(SMALL), betas=betas)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    found = []
    for step in range(3):
        train(optimizer, range(step, step + 1))
        found.append(float(optimizer.param_groups[0]["betas"][0]))
        scheduler.step()
    assert len(set(found)) == 3
    assert float(optimizer.param_groups[0]["betas"][1]) == pytest.approx(0.95)
    assert not any(param.isnan().any() for param in params_of(optimizer))
