"""The same masks under any sharding: shards on gloo processes against one process, bit for bit."""

import itertools
import math
import warnings
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.sharded_runs import (
    N_PROCESSES,
    N_STEPS,
    SHAPES,
    assert_shards_are,
    in_one_process,
    make_optimizer,
    place_like,
    train,
    values_of,
)
from helpers.small_runs import assert_same, make_grad, params_of, snapshot
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
)

import graddrop
from graddrop import FusedGradDropAdamW, graddrop_adamw_

MASKS = [
    {"granularity": "element", "site": "freeze"},
    {"granularity": "row", "site": "grad"},
    {"granularity": "tensor", "site": "update"},
    {"granularity": "tensor", "select": "shuffled", "site": "freeze"},
    {"granularity": "element", "site": "update", "rescale": "alignment"},
]


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
        mask = mask | {"max_grad_norm": math.inf}  # measured
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
            torch.testing.assert_close(optimizer.grad_norm, whole.grad_norm)
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
    """One reduction along each dimension of a mesh, for placements of every kind and plain ones.

    torch's own ``full_tensor`` would reduce each kind for itself, and warn.
    """
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    data, model = mesh["data"], mesh["model"]
    kinds = [(mesh, (Shard(0), Shard(0))), (mesh, (Shard(0), Replicate()))]
    kinds += [(mesh, (Replicate(), Shard(1))), (mesh, (Replicate(), Replicate())), None]
    parts = [
        (data, (Shard(0),)),
        (data, (Shard(1),)),
        (model, (Shard(0),)),
        (model, (Replicate(),)),
    ]
    for chosen, n_reductions in (
        (kinds, 2),
        (kinds[1:2], 1),
        (kinds[3:], 0),
        (parts, 2),
        (parts + kinds, 4),
    ):
        shapes = {str(i): (5 + i, 6 + i) for i in range(len(chosen))}
        values = [torch.nn.Parameter(value) for value in values_of(shapes).values()]
        whole = make_optimizer(values, backend, max_grad_norm=0.1)
        placed = [
            torch.nn.Parameter(value.detach() if kind is None else place_like(value, *kind))
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
    keep = {"keep_masks": [DTensor.from_local(torch.ones(2).bool(), mesh, [Shard(0)])]}
    others = {"lr": scalar, "drop_prob": scalar, "grad_scale": scalar, "found_inf": scalar}
    for name in (*names, *others, "keep_masks"):
        given = plain | {"lr": 0.1, "draw": 0}
        given |= {name: [sharded]} if name in names else {name: (others | keep)[name]}
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
def test_shards_step_as_one_process(processes, process_backend, mesh_shape, placements):
    """Given the same gradients, shards add up to one process, to the last bit."""
    processes.run(check_placements, process_backend, mesh_shape, placements)


@pytest.mark.parametrize(
    "check",
    [
        check_fully_shard,
        check_fsdp_over_tensor_parallel,
        check_training,
        check_norms_of_a_mesh,
        check_gradients_placed_otherwise,
        check_a_wrong_place,
    ],
)
def test_sharded_training_is_that_of_one_process(processes, process_backend, check):
    """What fully_shard, tensor parallelism and pending reductions make of it; and a control."""
    processes.run(check, process_backend)


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
def test_distributed_checkpoints_hold_everything(processes, process_backend, options):
    """torch.distributed.checkpoint's state dicts carry groups, counters and moments."""
    processes.run(check_distributed_checkpoint, process_backend, options)


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
