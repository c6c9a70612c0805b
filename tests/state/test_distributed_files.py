"""Laws of torch.distributed.checkpoint between torch.optim.AdamW and ours: what the README says."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as files
from helpers.small_runs import assert_same, params_of, snapshot, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from graddrop import FusedGradDropAdamW

# Arguments of AdamW that stand in our groups at one value.
ONE_VALUE = {
    "amsgrad": False,
    "foreach": None,
    "fused": None,
    "differentiable": False,
    "decoupled_weight_decay": True,
}
FULL = pytest.mark.parametrize("full", [False, True])


@pytest.fixture(scope="module", autouse=True)
def process_group():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(cls):
    """A model, and its optimizer on the reference, whose steps without a mask are AdamW's own."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    ours = cls is FusedGradDropAdamW
    knobs = {"drop_prob": 0.0, "backend": "reference"} if ours else {"foreach": False}
    return model, cls(model.named_parameters(), lr=1e-2, **knobs)


def cross(source, target, folder=None, *, full=False, partial=False):
    """The model and optimizer of a class, with the state of two steps of another's."""
    options = StateDictOptions(full_state_dict=full)
    model, saved = make(source)
    train(saved, 2)
    # A copy, since AdamW takes tensors that are given in memory for its own.
    state = copy.deepcopy(get_optimizer_state_dict(model, saved, options=options))
    other, loaded = make(target)
    if folder is not None:
        files.save({"optimizer": state}, checkpoint_id=folder)
        found = {"optimizer": get_optimizer_state_dict(other, loaded, options=options)}
        planner = files.DefaultLoadPlanner(allow_partial_load=True) if partial else None
        files.load(found, checkpoint_id=folder, planner=planner)
        state = found["optimizer"]
    set_optimizer_state_dict(other, loaded, state, options=options)
    other.load_state_dict(model.state_dict())
    return saved, loaded


def assert_goes_on(saved, loaded):
    """Both hold the same state, and make the same next step."""
    assert_same(snapshot(loaded), snapshot(saved))
    for optimizer in (saved, loaded):
        train(optimizer, range(2, 3))
    assert_same(snapshot(loaded), snapshot(saved))
    for optimizer in (saved, loaded):
        if isinstance(optimizer, FusedGradDropAdamW):
            assert optimizer.draws == [3]


@FULL
def test_ours_in_files_loads_into_adamw(tmp_path, full):
    """AdamW asks for no more than we have."""
    assert_goes_on(*cross(FusedGradDropAdamW, torch.optim.AdamW, tmp_path, full=full))


@FULL
def test_adamw_in_files_loads_here_in_part(tmp_path, full):
    """It lacks our knobs, so that a reader who wants all of them is refused."""
    knobs = {"full": full, "partial": True}
    assert_goes_on(*cross(torch.optim.AdamW, FusedGradDropAdamW, tmp_path / "a", **knobs))
    with pytest.raises(files.CheckpointException, match="Missing key .*drop_prob"):
        cross(torch.optim.AdamW, FusedGradDropAdamW, tmp_path / "b", full=full)


@pytest.mark.parametrize(
    ("source", "target", "full"),
    [
        (FusedGradDropAdamW, torch.optim.AdamW, False),
        (torch.optim.AdamW, FusedGradDropAdamW, False),
        (torch.optim.AdamW, FusedGradDropAdamW, True),
        (FusedGradDropAdamW, torch.optim.AdamW, True),
    ],
)
def test_in_memory_all_but_one_way_goes(source, target, full):
    """AdamW, given our whole state without a file, looks for our knobs in its own."""
    refused = full and target is torch.optim.AdamW
    with pytest.raises(KeyError, match="drop_prob") if refused else nullcontext():
        assert_goes_on(*cross(source, target, full=full))


@pytest.mark.parametrize("cls", [torch.optim.AdamW, FusedGradDropAdamW])
def test_a_checkpoint_before_training_counts_as_a_step(cls):
    """torch makes the state by a step with rates and gradients of zero: masks begin with draw 1."""
    model, optimizer = make(cls)
    before = [param.detach().clone() for param in model.parameters()]
    get_optimizer_state_dict(model, optimizer)
    assert_same([param.detach() for param in model.parameters()], before)
    assert [int(optimizer.state[param]["step"]) for param in params_of(optimizer)] == [1, 1]
    assert cls is torch.optim.AdamW or optimizer.draws == [1]


@pytest.mark.parametrize("load", [FusedGradDropAdamW.load_state_dict, Optimizer.load_state_dict])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_groups_have_the_keys_of_adamw_whatever_is_loaded(load, options):
    """A reader asks for its own; those at one value keep it, or the step would refuse it."""
    model, ours = make(FusedGradDropAdamW)
    theirs = torch.optim.AdamW(model.parameters(), **options)
    train(theirs, 1)
    for _ in range(2):
        (group,) = ours.param_groups
        assert theirs.param_groups[0].keys() <= group.keys()
        assert {key: group[key] for key in ONE_VALUE} == ONE_VALUE
        load(ours, copy.deepcopy(theirs.state_dict()))
    train(ours, range(1, 2))


@pytest.mark.parametrize("key", ONE_VALUE)
def test_another_value_of_theirs_is_refused(key):
    """Whoever puts it into a group: nothing has changed then."""
    _, ours = make(FusedGradDropAdamW)
    train(ours, 1)
    before = snapshot(ours)
    ours.param_groups[0][key] = not ONE_VALUE[key]
    with pytest.raises(ValueError, match=f"Invalid {key}: .* has it at {ONE_VALUE[key]} only"):
        train(ours, range(1, 2))
    assert_same(snapshot(ours), before)
