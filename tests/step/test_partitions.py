"""Parameters that an engine has cut into pieces, without saying which, are refused."""

import pickle
import re
import warnings

import pytest
import torch
import torch.distributed as dist
from helpers.processes import gang
from helpers.small_runs import assert_same, make_optimizer, params_of, set_grads, snapshot, train
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard

from graddrop import FusedGradDropAdamW, graddrop_adamw_

INSTEAD = re.escape("use torch.distributed.fsdp.fully_shard (FSDP2)")


@pytest.fixture(scope="module")
def processes():
    """Two processes, for all tests of this module."""
    with gang(2) as running:
        yield running


class Model(torch.nn.Module):
    """Parameters, and a forward pass that uses all of them."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5, 4))
        self.bias = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        """A sum of products."""
        return x.sum() * (self.weight.sum() + self.bias.sum())


def check_fsdp1(use_orig_params, strategy):
    """Refused at construction, in one group and as one of several."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # NO_SHARD will go
        model = FullyShardedDataParallel(
            Model(),
            use_orig_params=use_orig_params,
            sharding_strategy=ShardingStrategy[strategy],
            device_id=torch.device("cpu"),
        )
    refused = pytest.raises(ValueError, match=f"FullyShardedDataParallel.*{INSTEAD}")
    with refused:
        FusedGradDropAdamW(model.parameters())
    optimizer = make_optimizer()
    with refused:
        optimizer.add_param_group({"params": model.parameters()})
    assert len(optimizer.param_groups) == 1
    param = next(param for param in model.parameters() if param.numel())
    like = [torch.ones_like(param) for _ in range(3)]
    with refused:
        graddrop_adamw_([param], like[:1], like[1:2], like[2:], [torch.zeros(())], lr=0.1, draw=0)


def check_fsdp1_after_construction():
    """An engine that wraps the model of an optimizer that is there: refused at its next step."""
    for steps_before in (0, 2):
        model = Model()
        optimizer = FusedGradDropAdamW(model.parameters())
        train(optimizer, steps_before)
        optimizer.zero_grad()
        cpu = torch.device("cpu")
        wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=cpu)
        wrapped(torch.ones(2)).backward()
        if dist.get_rank() == 1:  # whoever holds no gradient refuses too
            optimizer.zero_grad()
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=f"FullyShardedDataParallel.*{INSTEAD}"):
            optimizer.step()
        assert_same(snapshot(optimizer), before)


def check_fsdp1_takes_the_parameters_away():
    """Its flat parameters are others, and those that the optimizer holds are nobody's.

    They bear no mark. As with torch's optimizers nothing moves, in the model or beside it.
    """
    model = Model()
    optimizer = FusedGradDropAdamW(model.parameters())
    train(optimizer, 2)
    optimizer.zero_grad()
    cpu = torch.device("cpu")
    wrapped = FullyShardedDataParallel(model, use_orig_params=False, device_id=cpu)
    wrapped(torch.ones(2)).backward()
    held = set(map(id, params_of(optimizer)))
    assert held.isdisjoint(map(id, wrapped.parameters()))
    everything = [*snapshot(optimizer), *(param.detach().clone() for param in wrapped.parameters())]
    optimizer.step()
    after = [*snapshot(optimizer), *(param.detach() for param in wrapped.parameters())]
    assert_same(after, everything)


def check_dtensors_after_construction():
    """Control: as accelerate does with FSDP2, and loading the state on the way."""
    model = Model()
    optimizer = FusedGradDropAdamW(model.parameters())
    optimizer.param_groups[0]["params"] = list(fully_shard(model).parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    model(torch.ones(2)).backward()
    optimizer.step()
    assert optimizer.draws == [1]


@pytest.mark.parametrize("use_orig_params", [True, False])
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
def test_fsdp1_is_refused_at_construction(processes, use_orig_params, strategy):
    """Its flat parameters and the views of them do not say which entries they hold."""
    processes.run(check_fsdp1, use_orig_params, strategy)


def test_fsdp1_is_refused_where_it_wraps_late(processes):
    """The mark that appears on a parameter is seen when a plan is made."""
    processes.run(check_fsdp1_after_construction)


def test_fsdp1_may_take_the_parameters_away(processes):
    """Wrapped late with use_orig_params=False, which cannot be told from a model at rest."""
    processes.run(check_fsdp1_takes_the_parameters_away)


def test_dtensors_may_take_the_place_of_parameters(processes):
    """Control: an exchange that keeps the whole's shape is no partition."""
    processes.run(check_dtensors_after_construction)


def test_a_parameter_marked_by_zero_3_is_refused():
    """DeepSpeed gives each an id: at construction, and when it appears later."""
    marked = torch.nn.Parameter(torch.ones(4))
    marked.ds_id = 0
    with pytest.raises(ValueError, match=f"DeepSpeed ZeRO 3.*{INSTEAD}"):
        FusedGradDropAdamW([torch.nn.Parameter(torch.ones(2)), marked])
    optimizer = make_optimizer()
    params_of(optimizer)[-1].ds_id = 0  # has no gradient
    set_grads(params_of(optimizer)[:-1], 0)
    with pytest.raises(ValueError, match=f"DeepSpeed ZeRO 3.*{INSTEAD}"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize(
    ("shapes", "piece"),
    [
        ([(4, 3), (5,)], 9),  # a flat half of both
        ([(4, 3)], 6),  # of one alone, in whose place it could pass
        ([(4, 3)], 12),
        ([(9,)], 5),
    ],
)
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("loads", [False, True])
def test_pieces_in_place_of_parameters_are_refused(shapes, piece, steps_before, loads):
    """As DeepSpeed ZeRO 1 and 2 do, which leave no mark; nothing has changed then."""
    optimizer = make_optimizer(shapes=((2, 2),))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(s)) for s in shapes]})
    train(optimizer, steps_before)
    if loads:
        optimizer.load_state_dict(optimizer.state_dict())
    flat = torch.nn.Parameter(torch.ones(piece))
    optimizer.param_groups[1]["params"] = [flat]
    set_grads(params_of(optimizer), 3)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"param group 1.*ZeRO.*{INSTEAD}"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)
    assert flat not in optimizer.state


def test_lists_edited_together_are_no_way_around():
    """Fewer parameters with fewer names are another group all the same."""
    optimizer = make_optimizer(shapes=((4, 3), (5,)))
    group = optimizer.param_groups[0]
    group.update(params=[torch.nn.Parameter(torch.ones(9))], stream_ids=[0], layers=[None])
    set_grads(group["params"], 0)
    with pytest.raises(ValueError, match=f"expected 2 parameters in param group 0.*{INSTEAD}"):
        optimizer.step()


@pytest.mark.parametrize("way", ["as they are", "loaded", "pickled", "in another order"])
def test_whole_parameters_may_take_the_place_of_others(way):
    """Control: of the same shape, or grown as a vocabulary grows, in a group of any place."""
    optimizer = make_optimizer(shapes=((4, 3), (5,)))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(7))]})
    optimizer.param_groups[0]["params"][0] = torch.nn.Parameter(torch.ones(6, 3))
    if way == "loaded":
        optimizer.load_state_dict(optimizer.state_dict())
    if way == "pickled":
        optimizer = pickle.loads(pickle.dumps(optimizer))
    if way == "in another order":
        optimizer.param_groups.reverse()
    train(optimizer, 2)
    assert set(optimizer.draws) == {2}
