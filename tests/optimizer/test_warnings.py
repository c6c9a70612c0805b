"""Laws of warnings: each points at the line with which the user has called for it."""

import warnings

import pytest
import torch
from helpers.small_runs import make_params, set_grads

from graddrop import FusedGradDropAdamW

SHAPES = ((3, 4), (5,))


def by_layer(**knobs):
    """Layers are what is dropped, and no parameter is in one."""
    params = make_params(SHAPES)
    set_grads(params, 0)
    knobs = {"granularity": "layer", "drop_prob": 0.5} | knobs
    return FusedGradDropAdamW([{"params": params, "layers": [None, None]}], **knobs)


def first_of(optimizer):
    """One of its parameters."""
    return optimizer.param_groups[0]["params"][0]


def skipping(optimizer):
    """A block of skip_dropped."""
    with optimizer.skip_dropped():
        pass


def hooked(optimizer):
    """A step within torch's hooks, and a closure."""
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.step(lambda: 0.0)


def second_epoch(optimizer):
    """The second step without a mask of its epoch."""
    optimizer.step()


def of_an_epoch():
    """A step before."""
    optimizer = by_layer(granularity="element", period="epoch")
    optimizer.step()
    return optimizer


def with_masks():
    """Masks that the state that is loaded has not."""
    optimizer = by_layer(drop_prob=0.0)
    optimizer.load_masks({first_of(optimizer): torch.ones(SHAPES[0]).bool()})
    return optimizer


def loading(optimizer):
    """Of a state with another drop_prob, and without masks."""
    other = by_layer(granularity="element", drop_prob=0.25)
    other.step()
    optimizer.load_state_dict(other.state_dict())


def torch_loading(optimizer):
    """By torch's own loader, which knows no masks."""
    other = by_layer(drop_prob=0.0)
    other.step()
    torch.optim.Optimizer.load_state_dict(optimizer, other.state_dict())


def misspelt(optimizer):
    """A new group with a knob that is none."""
    optimizer.add_param_group({"params": make_params(SHAPES), "layers": [1, 2], "drop_porb": 0.5})


def misspelt_first(optimizer):
    """The same where the optimizer is made."""
    FusedGradDropAdamW([{"params": make_params(SHAPES), "drop_porb": 0.5}])


WAYS = {
    "step": (by_layer, lambda optimizer: optimizer.step()),
    "hooked": (by_layer, hooked),
    "keep_mask": (by_layer, lambda optimizer: optimizer.keep_mask(first_of(optimizer))),
    "dropped_params": (by_layer, lambda optimizer: optimizer.dropped_params()),
    "dropped_layers": (by_layer, lambda optimizer: optimizer.dropped_layers()),
    "log_values": (by_layer, lambda optimizer: optimizer.log_values()),
    "log_values, waiting": (by_layer, lambda optimizer: optimizer.log_values(wait=True)),
    "skip_dropped": (by_layer, skipping),
    "epoch": (of_an_epoch, second_epoch),
    "load": (with_masks, loading),
    "torch's load": (with_masks, torch_loading),
    "add_param_group": (by_layer, misspelt),
    "constructor": (by_layer, misspelt_first),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_warning_points_at_the_users_line(way):
    """Whatever lies between: torch's hooks, context managers, our own calls."""
    make, call = WAYS[way]
    optimizer = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(optimizer)
    assert caught and {warning.filename for warning in caught} == {__file__}
    first = call.__code__.co_firstlineno
    lines = {line for _, _, line in call.__code__.co_lines()}
    assert all(warning.lineno in lines and warning.lineno >= first for warning in caught)
