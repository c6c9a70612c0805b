"""The same masks under any sharding: shards on gloo processes against one process, bit for bit."""

import copy
import itertools
import warnings
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.layered_net import Net, make_net, train_net
from helpers.processes import gang
from helpers.small_runs import assert_same, make_grad, make_params, params_of, snapshot
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

import graddrop
from graddrop import FusedGradDropAdamW, graddrop_adamw_

N_PROCESSES = 4
N_STEPS = 2
# Rows that four processes share unevenly; one row, and six, so that some shards are empty; a
# vector; an odd matrix; three dimensions.
SHAPES = {"uneven": (5, 12), "one": (1, 9), "six": (6, 8), "vector": (1030,), "odd": (7, 33)}
SHAPES |= {"three": (4, 3, 5)}
MASKS = [
    {"granularity": "element", "site": "freeze"},
    {"granularity": "row", "site": "grad"},
    {"granularity": "tensor", "site": "update"},
    {"granularity": "element", "site": "update", "rescale": "alignment"},
]


def values_of(shapes=SHAPES):
    """Values of the whole parameters."""
    params = make_params(tuple(shapes.values()))
    return {name: param.detach() for name, param in zip(shapes, params, strict=True)}


def make_optimizer(params, backend, **knobs):
    """The optimizer, of whole parameters or of shards."""
    knobs = {"lr": 1e-2, "weight_decay": 0.1, "drop_prob": 0.5, "seed": 7} | knobs
    return FusedGradDropAdamW(params, backend=backend, **knobs)


def train(optimizer, steps=N_STEPS, place=None):
    """Step on given gradients, sharded as their parameters, or as ``place`` says."""
    for step in range(steps) if isinstance(steps, int) else steps:
        for index, param in enumerate(params_of(optimizer)):
            whole = torch.empty(param.shape)  # of a DTensor too
            grad = make_grad(whole, index, step)
            if isinstance(param, DTensor):
                grad = (place or place_like)(grad, param.device_mesh, param.placements)
            param.grad = grad
        optimizer.step()


def in_one_process(backend, steps=N_STEPS, **knobs):
    """What one process makes of the whole parameters."""
    optimizer = make_optimizer(
        [torch.nn.Parameter(v) for v in values_of().values()], backend, **knobs
    )
    train(optimizer, steps)
    return optimizer


def place_like(whole, mesh, placements):
    """This process's part of a tensor that all have; nothing is sent."""
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def assert_shards_are(optimizer, expected, exact):
    """The shards' parameters, moments and next masks are parts of those of one process.

    The compiled kernels are exact to the last bit, but for alignments, whose sums round as shards
    lie; torch's own loops, of which the reference is made, round the last few entries of a tensor
    differently, wherever that ends.
    """
    for param, whole in zip(params_of(optimizer), params_of(expected), strict=True):
        state, whole_state = optimizer.state[param], expected.state[whole]
        pairs = [(param, whole)] + [
            (state[key], whole_state[key]) for key in ("exp_avg", "exp_avg_sq")
        ]
        same_bits = exact and "alignment" not in whole_state
        tolerance = {"rtol": 0, "atol": 0} if same_bits else {"rtol": 1e-6, "atol": 1e-9}
        for shard, tensor in pairs:
            part = place_like(tensor.detach(), param.device_mesh, param.placements)
            torch.testing.assert_close(shard.detach().to_local(), part.to_local(), **tolerance)
        assert state["exp_avg"].placements == param.placements
        assert state["step"] == whole_state["step"]
        if "alignment" in whole_state:
            close = {"rtol": 0, "atol": 1e-7}
            torch.testing.assert_close(state["alignment"], whole_state["alignment"], **close)
            everywhere = [torch.zeros(()) for _ in range(dist.get_world_size())]
            dist.all_gather(everywhere, state["alignment"])
            assert len(set(map(float, everywhere))) == 1
        keep = place_like(expected.keep_mask(whole), param.device_mesh, param.placements)
        assert torch.equal(optimizer.keep_mask(param), keep.to_local())


def check_placements(backend, mesh_shape, placements):
    """Shards by hand, of a mesh of any dimensions."""
    mesh = init_device_mesh("cpu", mesh_shape)
    for mask in MASKS:
        params = []
        for value in values_of().values():
            own = [
                Shard(min(place.dim, value.dim() - 1)) if isinstance(place, Shard) else place
                for place in placements
            ]
            params.append(torch.nn.Parameter(place_like(value, mesh, own)))
        optimizer = make_optimizer(params, backend, **mask)
        train(optimizer)
        assert_shards_are(optimizer, in_one_process(backend, **mask), backend == "cpu")


def check_fully_shard(backend):
    """Dimension 0 over all processes, as fully_shard does it; empty shards among them."""
    for mask in MASKS:
        module = torch.nn.ParameterList(values_of().values())
        fully_shard(module)
        optimizer = make_optimizer(module.parameters(), backend, **mask)
        sizes = [param.to_local().numel() for param in params_of(optimizer)]
        if dist.get_rank() == N_PROCESSES - 1:
            assert 0 in sizes
        train(optimizer)
        assert_shards_are(optimizer, in_one_process(backend, **mask), backend == "cpu")


def check_fsdp_over_tensor_parallel(backend):
    """fully_shard of parameters that are sharded already: both dimensions cut the same rows."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    shapes = {"a": (8, 6), "b": (12, 4)}
    for mask, dim in itertools.product(MASKS, (0, 1)):
        module = torch.nn.ParameterList(
            place_like(value, mesh["model"], [Shard(dim)]) for value in values_of(shapes).values()
        )
        fully_shard(module, mesh=mesh["data"])
        optimizer = make_optimizer(module.parameters(), backend, **mask)
        whole = make_optimizer(
            [torch.nn.Parameter(value) for value in values_of(shapes).values()], backend, **mask
        )
        for step in range(N_STEPS):
            for index, (param, full) in enumerate(
                zip(params_of(optimizer), params_of(whole), strict=True)
            ):
                full.grad = make_grad(full, index, step)
                first = place_like(full.grad, mesh["model"], [Shard(dim)]).to_local()
                rows = first.chunk(2)[mesh["data"].get_local_rank()].contiguous()
                param.grad = DTensor.from_local(
                    rows,
                    param.device_mesh,
                    param.placements,
                    shape=param.shape,
                    stride=param.stride(),
                )
            optimizer.step()
            whole.step()
        for param, full in zip(params_of(optimizer), params_of(whole), strict=True):
            first = place_like(full.detach(), mesh["model"], [Shard(dim)]).to_local()
            rows = first.chunk(2)[mesh["data"].get_local_rank()]
            torch.testing.assert_close(
                param.to_local().detach(), rows, rtol=0 if backend == "cpu" else 1e-6, atol=0
            )


def check_training(backend):
    """A real backward, clipped: with one batch everywhere, FSDP2 trains as one process does."""
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for layer in models[0]:
        fully_shard(layer)
    fully_shard(models[0])
    optimizers = [
        make_optimizer(model.named_parameters(), backend, max_grad_norm=0.1) for model in models
    ]
    batch = torch.randn(7, 6)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(*(optimizer.grad_norm for optimizer in optimizers))
    assert_shards_are(*optimizers, exact=False)


def check_norms_of_a_mesh(backend):
    """One reduction along each dimension of the mesh, for placements of every kind and plain ones.

    torch's own ``full_tensor`` would reduce each kind for itself, and warn.
    """
    mesh = init_device_mesh("cpu", (2, 2))
    kinds = [(Shard(0), Shard(0)), (Shard(0), Replicate()), (Replicate(), Shard(1))]
    kinds += [(Replicate(), Replicate()), None]
    for chosen, n_reductions in ((kinds, 2), (kinds[1:2], 1), (kinds[3:], 0)):
        shapes = {str(kind): (5 + i, 6 + i) for i, kind in enumerate(chosen)}
        values = [torch.nn.Parameter(value) for value in values_of(shapes).values()]
        whole = make_optimizer(values, backend, max_grad_norm=0.1)
        placed = [
            torch.nn.Parameter(value.detach() if kind is None else place_like(value, mesh, kind))
            for kind, value in zip(chosen, values, strict=True)
        ]
        optimizer = make_optimizer(placed, backend, max_grad_norm=0.1)
        train(whole)
        count = mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce)
        with count as reduce, warnings.catch_warnings():
            warnings.simplefilter("error")
            train(optimizer)
        assert reduce.call_count == n_reductions * N_STEPS
        torch.testing.assert_close(optimizer.grad_norm, whole.grad_norm)


def check_norms_split_by_hand(backend, max_norm=0.1):
    """Each process holds some parameters, one of them none: the norm is that of all."""
    whole = in_one_process(backend, max_grad_norm=max_norm, eps=1e-2)
    owned = [index for index in range(len(SHAPES)) if index % 3 == dist.get_rank()]
    params = [torch.nn.Parameter(value) for value in values_of().values()]
    own = [params[index] for index in owned]
    for group in (None, dist.group.WORLD):
        optimizer = make_optimizer(
            [{"params": own, "stream_ids": owned}],
            backend,
            max_grad_norm=max_norm,
            norm_group=group,
            eps=1e-2,
        )
        for step in range(N_STEPS):
            for index, param in enumerate(params):
                param.grad = make_grad(param, index, step)
            optimizer.step()
        if group is None:  # control: a norm of its own, None where there is no gradient
            assert optimizer.grad_norm is None or optimizer.grad_norm < 0.9 * whole.grad_norm
            for param, value in zip(params, values_of().values(), strict=True):
                param.data.copy_(value)
    torch.testing.assert_close(float(optimizer.grad_norm), float(whole.grad_norm))
    for index in owned:
        torch.testing.assert_close(params[index], params_of(whole)[index], rtol=1e-5, atol=1e-7)


def check_zero_redundancy(backend):
    """Arguments of the whole optimizer arrive; the norm of all parameters is the bound."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it is loaded

    params = [torch.nn.Parameter(value) for value in values_of().values()]
    arguments = {
        "max_grad_norm": 0.1,
        "masked_norm": False,
        "norm_group": dist.group.WORLD,
        "state_dtype": torch.bfloat16,
        "backend": backend,
        "drop_prob": 0.25,
    }
    zero = ZeroRedundancyOptimizer(params, FusedGradDropAdamW, **arguments)
    whole = make_optimizer([p.detach().clone().requires_grad_() for p in params], backend, lr=1e-3)
    whole.max_grad_norm = 0.1
    train(whole)
    for step in range(N_STEPS):
        for index, param in enumerate(params):
            param.grad = make_grad(param, index, step)
        zero.step()
    torch.testing.assert_close(float(zero.optim.grad_norm), float(whole.grad_norm))
    assert (zero.optim._backend, zero.optim._state_dtype) == (backend, torch.bfloat16)
    assert all(group["drop_prob"] == 0.25 for group in zero.optim.param_groups)
    # What holds for all groups is in none of them, so that a state goes anywhere.
    saved = zero.optim.state_dict()
    assert not arguments.keys() - {"drop_prob"} & saved["param_groups"][0].keys()
    with pytest.raises(ValueError, match="expected backend as an argument of the optimizer"):
        make_optimizer([{"params": [torch.ones(2)], "backend": "triton"}], backend)


def check_consolidated_zero(backend):
    """A consolidated state brings all processes the groups of the first: who has others is told.

    torch puts them into the groups by hand, so that the next step is the first to see them.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it is loaded

    params = [torch.nn.Parameter(value) for value in values_of().values()]
    zero = ZeroRedundancyOptimizer(params, FusedGradDropAdamW, backend=backend)

    def step(number):
        for index, param in enumerate(params):
            param.grad = make_grad(param, index, number)
        zero.step()

    step(0)
    zero.consolidate_state_dict(to=0)
    sent = [zero.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(sent)
    zero.load_state_dict(sent[0])
    own, first = (len(zero._partition_parameters()[r][0]["params"]) for r in (dist.get_rank(), 0))
    before = snapshot(zero.optim)
    if own == first:
        zero.optim.step()  # alone: the others would be waited for
        assert zero.optim.param_groups[0]["stream_ids"] == list(range(own))
        return
    assert dist.get_rank() > 0
    message = f"expected {own} stream_ids in param group 0, .* got {first}: .*ZeRO.*fully_shard"
    with pytest.raises(ValueError, match=message):
        zero.optim.step()
    assert_same(snapshot(zero.optim), before)


def check_consolidated_seeds(backend):
    """Where the lists fit, the first process's seed is told, and set again it is the same run."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where it is loaded

    rank = dist.get_rank()

    def make():
        params = [torch.nn.Parameter(torch.full((33,), float(i))) for i in range(2 * N_PROCESSES)]
        zero = ZeroRedundancyOptimizer(
            params, FusedGradDropAdamW, backend=backend, seed=rank, site="freeze"
        )
        assert zero.optim.param_groups[0]["stream_ids"] == [0, 1]
        return params, zero

    def step(params, zero, number):
        for index, param in enumerate(params):
            param.grad = make_grad(param, index, number)
        zero.step()

    params, zero = make()
    step(params, zero, 0)
    zero.consolidate_state_dict(to=0)
    sent = [zero.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(sent)
    resumed, fresh = make()
    for param, value in zip(resumed, params, strict=True):
        param.data.copy_(value)
    fresh.load_state_dict(copy.deepcopy(sent[0]))  # torch would share its tensors
    if rank:
        for index, param in enumerate(resumed):
            param.grad = make_grad(param, index, 1)
        before = snapshot(fresh.optim)
        with pytest.raises(ValueError, match=f"seed {rank} that param group 0 has had, got 0"):
            fresh.optim.step()  # alone: it ends before the others are waited for
        assert_same(snapshot(fresh.optim), before)
    fresh.param_groups[0]["seed"] = rank
    for number in (1, 2):
        step(params, zero, number)
        step(resumed, fresh, number)
    assert_same(resumed, params)
    assert len({tuple((p != i).tolist()) for i, p in enumerate(params)}) == len(params)


def check_gradients_placed_otherwise(backend):
    """A gradient whose reduction is pending, or that is replicated, is that gradient."""
    mesh = init_device_mesh("cpu", (N_PROCESSES,))
    expected = in_one_process(backend)

    def pending(grad, mesh, placements):
        mine = grad if dist.get_rank() == 1 else torch.zeros_like(grad)
        return DTensor.from_local(mine, mesh, [Partial()])

    def replicated(grad, mesh, placements):
        return place_like(grad, mesh, [Replicate()])

    for param_place, place in ((Replicate(), pending), (Shard(0), pending), (Shard(0), replicated)):
        params = [
            torch.nn.Parameter(place_like(value, mesh, [param_place]))
            for value in values_of().values()
        ]
        optimizer = make_optimizer(params, backend)
        train(optimizer, place=place)
        assert_shards_are(optimizer, expected, backend == "cpu")


def check_a_pending_parameter():
    """A parameter whose own reduction is pending has no values to step."""
    mesh = init_device_mesh("cpu", (N_PROCESSES,))
    param = torch.nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    with pytest.raises(ValueError, match="expected a sharded or replicated parameter"):
        FusedGradDropAdamW([param])


def check_dtensors_as_arguments():
    """Each argument of graddrop_adamw_ is looked at; nothing has changed then."""
    mesh = init_device_mesh("cpu", (N_PROCESSES,))
    sharded = DTensor.from_local(torch.ones(2), mesh, [Shard(0)])
    scalar = DTensor.from_local(torch.ones(()), mesh, [Replicate()])
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "state_steps")
    plain = {name: [torch.ones(2)] for name in names} | {"state_steps": [torch.zeros(())]}
    for name in (*names, "lr", "drop_prob", "found_inf"):
        given = plain | {"lr": 0.1, "draw": 0}
        given[name] = [sharded] if name in names else scalar
        with pytest.raises(TypeError, match=rf"expected {name} .*DTensor.*\.to_local\(\)"):
            graddrop_adamw_(**given)
    assert all(torch.equal(plain[name][0], torch.ones(2)) for name in names[:-1])
    assert torch.equal(sharded.to_local(), torch.ones(2))


def check_a_wrong_place(backend):
    """Control: shards stepped as if each were the whole parameter draw other masks."""
    rank = dist.get_rank()
    index = list(SHAPES).index("odd")
    expected = params_of(in_one_process(backend))[index].detach().chunk(N_PROCESSES)
    rows = values_of()["odd"].chunk(N_PROCESSES)[rank]
    param = torch.nn.Parameter(rows.clone())
    optimizer = make_optimizer([{"params": [param], "stream_ids": [index]}], backend)
    for step in range(N_STEPS):
        grad = make_grad(torch.empty(SHAPES["odd"]), index, step)
        param.grad = grad.chunk(N_PROCESSES)[rank].clone()
        optimizer.step()
    # the first process holds the beginning of the parameter, where the place is right by chance
    assert torch.allclose(param.detach(), expected[rank], rtol=1e-6) == (rank == 0)


def sharded_model():
    """A model of two layers, fully sharded."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def two_groups(model):
    """Weights, and biases with other knobs."""
    params = dict(model.named_parameters())
    return [
        {"params": [params["0.weight"], params["1.weight"]], "period": "epoch", "layers": [0, 1]},
        {"params": [params["0.bias"], params["1.bias"]], "drop_prob": 0.25, "site": "freeze"},
    ]


def check_distributed_checkpoint(backend, options):
    """State dicts by parameter names, sharded, whole or flattened, go on where they stopped."""
    options = checkpoint.StateDictOptions(**options)
    model, again = sharded_model(), sharded_model()
    ours = make_optimizer(two_groups(model), backend)
    fresh = make_optimizer(two_groups(again), backend)
    ours.new_mask(0)
    train(ours, 2)
    ours.new_mask()
    saved = checkpoint.get_optimizer_state_dict(model, ours, options=options)
    checkpoint.set_optimizer_state_dict(again, fresh, saved, options=options)
    with torch.no_grad():
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            b.copy_(a)
    assert fresh.draws == ours.draws == [1, 2]
    for optimizer in (ours, fresh):
        train(optimizer, range(2, 4))
    assert_same(
        *(
            [t.to_local() if isinstance(t, DTensor) else t for t in snapshot(o)]
            for o in (ours, fresh)
        )
    )


@pytest.fixture(scope="module")
def processes():
    """Four processes, for all tests of this module."""
    with gang(N_PROCESSES) as running:
        yield running


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """The backends that run on processes without GPUs."""
    if request.param == "cpu":
        from graddrop.kernels.cpu import binding

        if not binding.LIBRARY.exists():
            pytest.skip(f"{binding.LIBRARY} is not built")
    return request.param


@pytest.mark.parametrize(
    "mesh_shape, placements",
    [
        ((4,), (Shard(0),)),
        ((4,), (Shard(1),)),
        ((2, 2), (Replicate(), Shard(0))),
        ((2, 2), (Shard(0), Shard(1))),
        ((2, 2), (Shard(0), Shard(0))),
    ],
    ids=str,
)
def test_shards_step_as_one_process(processes, backend, mesh_shape, placements):
    """Given the same gradients, shards add up to one process, to the last bit."""
    processes.run(check_placements, backend, mesh_shape, placements)


@pytest.mark.parametrize(
    "check",
    [
        check_fully_shard,
        check_fsdp_over_tensor_parallel,
        check_training,
        check_norms_of_a_mesh,
        check_norms_split_by_hand,
        check_zero_redundancy,
        check_consolidated_zero,
        check_consolidated_seeds,
        check_gradients_placed_otherwise,
        check_a_wrong_place,
    ],
)
def test_sharded_training_is_that_of_one_process(processes, backend, check):
    """What fully_shard, tensor parallelism and pending reductions make of it; and a control."""
    processes.run(check, backend)


def test_a_pending_parameter_is_refused(processes):
    """A parameter whose own reduction is pending has no values to step."""
    processes.run(check_a_pending_parameter)


def test_the_function_refuses_dtensors(processes):
    """By name, and with what to do: it cannot tell which of its lists lie alike."""
    processes.run(check_dtensors_as_arguments)


@pytest.mark.parametrize(
    "options",
    [{}, {"full_state_dict": True}, {"flatten_optimizer_state_dict": True}],
    ids=str,
)
def test_distributed_checkpoints_hold_everything(processes, backend, options):
    """torch.distributed.checkpoint's state dicts carry groups, counters and moments."""
    processes.run(check_distributed_checkpoint, backend, options)


def test_the_checks_can_fail(processes):
    """Control: what fails in a process fails here, and the processes live on."""
    with pytest.raises(AssertionError, match="(?s)process 0: .*ValueError"):
        processes.run(check_placements, "no such backend", (4,), (Shard(0),))
    processes.run(check_a_pending_parameter)


CUTS = {  # of (7, 12): rows and columns of each local tensor
    "halves": [(slice(0, 3), slice(0, 12)), (slice(3, 7), slice(0, 12))],
    "columns": [(slice(0, 7), slice(0, 5)), (slice(0, 7), slice(5, 12))],
    "blocks": [
        (rows, columns)
        for rows in (slice(0, 4), slice(4, 7))
        for columns in (slice(0, 1), slice(1, 12))
    ],
    "with an empty one": [(slice(0, 7), slice(0, 12)), (slice(7, 7), slice(0, 12))],
    "with one entry": [
        (slice(0, 1), slice(0, 1)),
        (slice(0, 1), slice(1, 12)),
        (slice(1, 7), slice(0, 12)),
    ],
}


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_function_steps_shards_as_the_whole(cut, granularity, request):
    """graddrop_adamw_ with Shard arguments: the parts of a parameter, as one."""
    for name in ("reference", "cpu"):
        whole = values_of({"w": (7, 12)})["w"]
        grad = make_grad(whole, 0, 0)
        knobs = {
            "lr": 0.1,
            "draw": 5,
            "granularity": granularity,
            "site": "update",
            "backend": name,
        }
        parts = [whole[part].clone() for part in CUTS[cut]]
        n = len(parts)
        graddrop_adamw_(
            parts,
            [grad[part].clone() for part in CUTS[cut]],
            [torch.zeros_like(part) for part in parts],
            [torch.zeros_like(part) for part in parts],
            [torch.zeros(()) for _ in parts],
            stream_ids=[3] * n,
            shards=[
                graddrop.Shard((7, 12), (rows.start, columns.start)) for rows, columns in CUTS[cut]
            ],
            **knobs,
        )
        before = whole.clone()
        moments = torch.zeros_like(whole), torch.zeros_like(whole)
        graddrop_adamw_(
            [whole], [grad], [moments[0]], [moments[1]], [torch.zeros(())], stream_ids=[3], **knobs
        )
        for part, where in zip(parts, CUTS[cut], strict=True):
            tolerance = 0 if name == "cpu" else 1e-6
            torch.testing.assert_close(part, whole[where], rtol=tolerance, atol=0)
            assert torch.equal(part != before[where], (whole != before)[where])
        assert not torch.equal(whole, before) or granularity == "tensor"


def run_net(wrap, skip, **knobs):
    """The local state after some steps of a wrapped model, each process with its own batches."""
    rank = dist.get_rank()
    model, optimizer = make_net(net=lambda: wrap(Net()), **knobs)
    train_net(model, optimizer, skip, micros=range(rank, rank + 1))
    tensors = [
        *model.parameters(),
        *(s for state in optimizer.state.values() for s in state.values()),
    ]
    return [getattr(tensor, "_local_tensor", tensor).detach().clone() for tensor in tensors]


def check_ddp_skips(find_unused):
    """Whole parameters, on every process."""

    def wrap(net):
        return torch.nn.parallel.DistributedDataParallel(net, find_unused_parameters=find_unused)

    assert_same(*(run_net(wrap, skip) for skip in (False, True)))


def test_ddp_may_skip_what_is_dropped(processes):
    """The training is the same; without find_unused_parameters DDP itself stops."""
    processes.run(check_ddp_skips, True)
    with pytest.raises(AssertionError, match="find_unused_parameters=True"):
        processes.run(check_ddp_skips, False)


def check_fsdp_skips(knobs):
    """Each layer is a unit of its own, computes in bfloat16 and is reduced in float32."""
    reduced, reduce = set(), FSDPParamGroup.post_backward

    def note(self, *arguments):
        reduced.add(self._reduce_dtype)
        return reduce(self, *arguments)

    def wrap(net):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in net.layers:
            fully_shard(layer, mp_policy=policy)
        return fully_shard(net, mp_policy=policy)

    FSDPParamGroup.post_backward = note
    try:
        full, skipped = (run_net(wrap, skip, **knobs) for skip in (False, True))
    finally:
        FSDPParamGroup.post_backward = reduce
    assert_same(full, skipped)
    assert reduced == {torch.float32}


def test_fsdp2_may_skip_what_is_dropped(processes):
    """Even a unit that the first step drops as a whole is reduced in the dtype that was asked for.

    FSDP2 looks at its first forward pass for it, among what needs a gradient.
    """
    knobs = {"drop_prob": 0.6}
    assert make_net(**knobs)[1].dropped_layers()
    processes.run(check_fsdp_skips, knobs)
