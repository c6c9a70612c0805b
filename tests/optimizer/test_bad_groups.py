"""Laws of bad param groups and options: a clear message, and nothing half-changed."""

import re

import pytest
import torch
from helpers.small_runs import make_params
from helpers.untouched import SHAPES, Untouched, trained
from torch.nn import Parameter, ParameterList

from graddrop import FusedGradDropAdamW

GROUPS = [
    (None, TypeError, "param_group must be a dict"),
    ({"params": [("name", Parameter(torch.zeros(3)))]}, ValueError, "with/without names"),
    (
        {"stream_ids": [7]},
        ValueError,
        "expected 2 stream_ids in param group 1, one per parameter, got 1",
    ),
    ({"stream_ids": 7}, TypeError, "stream_ids of param group 1 as a list with one per"),
    ({"layers": 1.5}, TypeError, "layers of param group 1 as an int, or a list with one per"),
    ({"layers": "ab"}, TypeError, "layers of param group 1 as an int, or a list with one per"),
    ({"stream_ids": [0, 9]}, ValueError, "expected stream_ids that no other parameter has"),
    ({"stream_ids": [9, 9]}, ValueError, "expected stream_ids that no other parameter has"),
    ({"stream_ids": [2, 1 << 30]}, ValueError, "Invalid stream id: 1073741824: expected an int"),
    ({"stream_ids": [2, -1]}, ValueError, "Invalid stream id: -1"),
    ({"stream_ids": [2, 0.5]}, ValueError, "Invalid stream id: 0.5"),
    ({"layers": [1]}, ValueError, "expected 2 layers in param group 1, one per parameter, got 1"),
    ({"layers": -1}, ValueError, "Invalid layer: -1: expected an integer >= 0, or None"),
    ({"layers": [1, "two"]}, ValueError, "Invalid layer: 'two'"),
    ({"backend": "cpu"}, ValueError, "expected backend as an argument of the optimizer"),
    ({"max_grad_norm": 1.0}, ValueError, "expected max_grad_norm as an argument of the optimizer"),
    (
        {"lr": torch.tensor(0.1, device="meta")},
        ValueError,
        "Invalid lr: expected a tensor with data",
    ),
    ({"granularity": "layer"}, ValueError, 'granularity="layer" has to know the layers: pass'),
]


@pytest.mark.parametrize("edit", [list.pop, lambda params: params.append(params[0])])
def test_an_edited_list_of_parameters_is_said(edit):
    """Masks need a name for each: the step says which lists do not fit, and changes nothing."""
    optimizer = trained()
    group = optimizer.param_groups[0]
    untouched = Untouched(optimizer)
    before = list(group["params"])
    edit(group["params"])
    for use in (optimizer.step, lambda: optimizer.keep_mask(before[0])):
        with pytest.raises(ValueError, match="stream_ids in param group 0, one per parameter, got"):
            use()
    group["params"][:] = before
    untouched.check()


def test_a_group_without_parameters_is_refused():
    """With what came instead."""
    optimizer = trained()
    untouched = Untouched(optimizer)
    message = re.escape("expected params in a param group, got ['lr'] alone")
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"lr": 0.1})
    untouched.check()


@pytest.mark.parametrize("group, error, message", GROUPS)
def test_a_bad_group_is_refused(group, error, message):
    """A group that does not fit leaves the optimizer as it was."""
    optimizer = trained()
    untouched = Untouched(optimizer)
    if isinstance(group, dict):
        group = {"params": make_params(((3,), (2,)))} | group
    with pytest.raises(error, match=re.escape(message)):
        optimizer.add_param_group(group)
    untouched.check()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "cuda"}, "Invalid backend: 'cuda': expected one of ('auto', 'triton', 'cpu'"),
        (
            {"state_dtype": torch.int8},
            "Invalid state_dtype: torch.int8: expected one of (torch.float32,",
        ),
        (
            {"state_dtype": "float32"},
            "Invalid state_dtype: 'float32': expected one of (torch.float32,",
        ),
    ],
)
def test_a_bad_option_is_refused(options, message):
    """What is the same for all groups is checked first."""
    with pytest.raises(ValueError, match=re.escape(message)):
        FusedGradDropAdamW(make_params(SHAPES), **options)


def test_a_misspelt_knob_is_warned_of():
    """Torch takes any key; one that is nearly ours would exempt nothing, silently."""
    for key, meant in (("dropprob", "drop_prob"), ("layer", "layers"), ("beta", "betas")):
        with pytest.warns(UserWarning, match=f"'{key}' in a param group .* mean '{meant}'"):
            FusedGradDropAdamW([{"params": make_params(SHAPES), key: 0}])
    others = {"name": "head", "initial_lr": 0.1, "lr_scale": 0.5, "max_lr": 1.0, "lr_mult": 2.0}
    group = FusedGradDropAdamW([{"params": make_params(SHAPES), **others}]).param_groups[0]
    assert group.items() >= others.items()  # control: what others keep in groups stays


def test_a_list_of_parameters_that_is_a_module_is_welcome():
    """Control: a ParameterList holds parameters, one after the other."""
    listed = ParameterList(make_params(SHAPES))
    assert FusedGradDropAdamW(listed).param_groups[0]["params"] == list(listed)
