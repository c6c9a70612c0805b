"""Laws of what parameters may be, and of what may happen to them between two steps."""

import pytest
import torch
from helpers.small_runs import (
    assert_same,
    differs,
    make_grad,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)
from torch.nn import Parameter

from graddrop import FusedGradDropAdamW

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def make_optimizer(params, backend="reference", **knobs):
    """An optimizer with a mask that lives for two steps."""
    knobs = {"lr": 1e-2, "period": 2, "seed": 5} | knobs
    return FusedGradDropAdamW(params, backend=backend, **knobs)


def transposed(tensor):
    """The same values, last two dimensions swapped in memory."""
    return tensor.mT.contiguous().mT


def channels_last(tensor):
    """The same values, images laid out with their channels innermost."""
    return tensor.contiguous(memory_format=torch.channels_last)


def every_second(tensor):
    """The same values with gaps in memory."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def unaligned(tensor):
    """The same values, one element past an aligned address."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


LAYOUTS = {
    "transposed": (transposed, (5, 7)),
    "channels last": (channels_last, (2, 3, 2, 3)),
    "gaps": (every_second, (5, 7)),
    "unaligned": (unaligned, (5, 7)),
    "no dimension": (torch.clone, ()),
    "empty": (torch.clone, (0, 3)),
    "nine dimensions": (torch.clone, (1, 2, 1, 2, 1, 2, 1, 2, 3)),
}


@pytest.mark.parametrize(
    "granularity, of",
    [("element", "param"), ("element", "grad"), ("element", "both"), ("row", "both")],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_no_number(backend, device, layout, granularity, of):
    """Whatever the strides of parameter and gradient, entries are stepped as in a plain tensor."""
    relay, shape = LAYOUTS[layout]
    (plain,) = make_params((shape,), device=device)
    odd = Parameter(relay(plain.detach()) if of != "grad" else plain.detach().clone())
    optimizers = [make_optimizer([p], backend, granularity=granularity) for p in (plain, odd)]
    before = odd.detach().clone()
    for step in range(2):
        plain.grad = make_grad(plain, 0, step)
        odd.grad = relay(make_grad(odd, 0, step)) if of != "param" else make_grad(odd, 0, step)
        for optimizer in optimizers:
            optimizer.step()
    if layout != "empty" and of != "grad":
        assert (odd.stride() != plain.stride()) == (
            layout in ("transposed", "channels last", "gaps")
        )
    assert_same(*(snapshot(optimizer) for optimizer in optimizers))
    assert layout == "empty" or differs([before], [odd.detach()])


def test_an_expanded_gradient_is_read_as_it_stands(backend, device):
    """A gradient whose entries share memory (stride 0) is an ordinary gradient."""
    runs = []
    for expand in (True, False):
        (param,) = make_params(((5, 7),), device=device)
        optimizer = make_optimizer([param], backend)
        grad = torch.full((), 0.5, device=device).expand(5, 7)
        param.grad = grad if expand else grad.contiguous()
        assert param.grad.stride() == ((0, 0) if expand else (7, 1))
        optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


@pytest.mark.parametrize("dtype", [F16, BF16, F64])
@pytest.mark.parametrize("state_dtype", [F32, None])
def test_moments_are_float32_or_of_the_parameters_dtype(dtype, state_dtype):
    """16-bit parameters have float32 moments unless told otherwise; float64 ones their own."""
    (param,) = make_params(((70,),), dtype)
    optimizer = FusedGradDropAdamW([param], state_dtype=state_dtype or dtype)
    train(optimizer, 2)
    state = optimizer.state[param]
    expected = F64 if dtype == F64 else state_dtype or dtype
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (expected, expected)
    assert state["step"].dtype == F32 and state["step"] == 2


def test_memory_may_be_swapped_between_steps(backend, device):
    """`.data =` on a parameter, a gradient or a moment: the step follows to the new memory."""
    runs, kept = [], []
    for swap in (False, True):
        params = make_params(((5, 7), (70,)), device=device)
        optimizer = make_optimizer(params, backend)
        train(optimizer, 1)
        for step in range(1, 4):
            set_grads(params, step)
            if swap:
                state = optimizer.state[params[0]]
                tensor = (params[0], params[0].grad, state["exp_avg"])[step - 1]
                kept.append((tensor.data, tensor.data.clone()))
                tensor.data = tensor.data.clone()
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)
    for memory, values in kept:  # what was swapped out is left alone
        assert torch.equal(memory, values)


def test_gradients_may_come_back_to_where_they_lay(backend, device):
    """To the place of the first step, of the last, or of one between; each is read where it is."""
    runs = []
    for n_places in (3, 1):
        (param,) = make_params(((5, 7),), device=device)
        optimizer = make_optimizer([param], backend)
        places = [torch.zeros_like(param) for _ in range(n_places)]
        for step, place in enumerate((0, 1, 0, 0, 2, 1, 0)):
            for number, memory in enumerate(places):  # what lies elsewhere is of no use
                memory.copy_(make_grad(param, number, step) * 1e6)
            param.grad = places[place % n_places].copy_(make_grad(param, 0, step))
            optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_state_may_be_exchanged_between_steps(backend, device):
    """Another state object is the state from then on; a state that is gone begins anew."""
    params = make_params(((5, 7),), device=device)
    optimizer = make_optimizer(params, backend)
    train(optimizer, 2)
    old = dict(optimizer.state[params[0]])
    old_values = [tensor.clone() for tensor in old.values()]
    optimizer.state[params[0]] = {key: tensor.clone() for key, tensor in old.items()}
    train(optimizer, range(2, 3))
    assert_same(list(old.values()), old_values)
    assert optimizer.state[params[0]]["step"] == 3
    optimizer.state.clear()
    train(optimizer, range(3, 4))
    assert optimizer.state[params[0]]["step"] == 1
    assert optimizer.draws == [2]  # masks are numbered by the optimizer, whose fourth step this was


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
def test_one_tensor_of_the_state_may_be_exchanged(backend, device, key):
    """In the state object that there is: the new one is stepped, the old one is left alone."""
    runs = []
    for exchanged in (False, True):
        params = make_params(((5, 7), (70,)), device=device)
        optimizer = make_optimizer(params, backend)
        train(optimizer, 2)
        state = optimizer.state[params[1]]
        old, value = state[key], state[key].clone()
        if exchanged:
            state[key] = value.clone()
        train(optimizer, range(2, 4))
        runs.append(snapshot(optimizer))
        assert torch.equal(old, value) == exchanged
    assert_same(*runs)


def test_parameters_may_change_places_between_steps(backend, device):
    """Each goes on with its own gradients and state; without a mask places mean nothing."""
    runs = []
    for change in (False, True):
        params = make_params(((5, 7), (7, 5), (5, 7)), device=device)
        optimizer = FusedGradDropAdamW(params, lr=1e-2, drop_prob=0.0, backend=backend)
        train(optimizer, 2, params)
        if change:
            optimizer.param_groups[0]["params"].reverse()
        train(optimizer, range(2, 4), params)
        runs.append(snapshot(optimizer, params))
    assert_same(*runs)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F64])
def test_a_model_may_change_its_dtype(dtype, begun):
    """``model.to(dtype)`` after construction: the next step is one of that dtype."""
    model = torch.nn.Linear(7, 5)
    optimizer = make_optimizer(model.parameters(), "auto", site="freeze")
    if begun:
        train(optimizer, 1)
    model.to(dtype)
    set_grads(model.parameters(), 1)
    keep, before = optimizer.keep_mask(model.weight), model.weight.detach().clone()
    optimizer.step()
    assert model.weight.dtype == dtype
    assert torch.equal(model.weight.detach() != before, keep)
    # moments stay as they were begun
    expected = F32 if begun or dtype == BF16 else F64
    assert optimizer.state[model.weight]["exp_avg"].dtype == expected


def other_dtype(param, state):
    """The parameter turns into a 16-bit view of the beginning of its memory."""
    param.data = param.data.fill_(1).view(BF16).flatten()[:36].view(6, 6)


def both_moments_transposed(param, state):
    """Both moments turn into other views of their own memory."""
    for key in ("exp_avg", "exp_avg_sq"):
        state[key].data = state[key].data.view(6, 6).t()


def both_moments_narrower(param, state):
    """Both moments turn into 16-bit views of the beginning of their memory."""
    for key in ("exp_avg", "exp_avg_sq"):
        state[key].data = state[key].data.zero_().view(BF16).flatten()[:36].view(6, 6)


@pytest.mark.parametrize("swap", [other_dtype, both_moments_transposed, both_moments_narrower])
def test_memory_that_is_seen_otherwise_is_seen(backend, device, swap):
    """``.data =`` at the same address, with other strides or another dtype: a new plan is made."""
    runs = []
    for fresh in (False, True):
        (param,) = make_params(((6, 6),), F32, device)
        optimizer = make_optimizer([param], backend)
        param.grad = make_grad(param, 0, 0)
        optimizer.step()
        address = param.data_ptr(), optimizer.state[param]["exp_avg"].data_ptr()
        swap(param, optimizer.state[param])
        assert (param.data_ptr(), optimizer.state[param]["exp_avg"].data_ptr()) == address
        if fresh:
            optimizer._plan_cache.forget()
        param.grad = None
        param.grad_dtype = None
        param.grad = make_grad(param, 0, 1)
        optimizer.step()
        runs.append(snapshot(optimizer))
    assert_same(*runs)


# Chance drops the second tensor; of two, none is dropped by number.
UNLUCKY = {"granularity": "tensor", "site": "freeze", "drop_prob": 0.2, "seed": 8}
CHANGES = {
    "drop_prob from 0": ({"drop_prob": 0.0}, {"drop_prob": 0.5}),
    "drop_prob to 0": ({"drop_prob": 0.5}, {"drop_prob": 0.0}),
    "drop_prob to another": ({"drop_prob": 0.5}, {"drop_prob": 0.1}),
    "site": ({"site": "grad"}, {"site": "freeze"}),
    "mask_decay": ({"site": "update"}, {"site": "update", "mask_decay": False}),
    "granularity": ({"granularity": "element"}, {"granularity": "row"}),
    "rescale": ({"rescale": False}, {"rescale": True}),
    "rescale by alignment": ({"site": "update"}, {"site": "update", "rescale": "alignment"}),
    "period": ({"period": 2}, {"period": "epoch"}),
    "seed": ({"seed": 1}, {"seed": 2}),
    "lr": ({"lr": 1e-2}, {"lr": 1e-3}),
    "betas": ({"betas": (0.9, 0.999)}, {"betas": (0.5, 0.9)}),
    "eps": ({"eps": 1e-8}, {"eps": 1e-1}),
    "weight_decay": ({"weight_decay": 0.0}, {"weight_decay": 0.5}),
    "maximize": ({"maximize": False}, {"maximize": True}),
    "select": (UNLUCKY, UNLUCKY | {"select": "exact"}),
    "stochastic_rounding on": ({"stochastic_rounding": False}, {"stochastic_rounding": True}),
    "stochastic_rounding off": ({"stochastic_rounding": True}, {"stochastic_rounding": False}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_knobs_may_change_between_steps(backend, device, change):
    """A knob that is set in any of ``param_groups`` counts from the next step on, as if new."""
    before, after = CHANGES[change]
    dtype = BF16 if "rounding" in change else F32

    def make(**knobs):
        first, second = make_params(((5,), (5, 7)), dtype, device)
        return make_optimizer(
            [{"params": [first]}, {"params": [second], **knobs}], backend, **before
        )

    changing, fresh, unchanged = (make() for _ in range(3))
    for optimizer in (changing, fresh, unchanged):
        train(optimizer, 1)
    changing.param_groups[1].update(after)
    state_dict = fresh.state_dict()
    state_dict["param_groups"][1].update(after)
    twin = make(**after)
    twin.load_state_dict(state_dict)
    for mine, trained in zip(params_of(twin), params_of(fresh), strict=True):
        mine.data.copy_(trained.data)
    for optimizer in (changing, twin, unchanged):
        train(optimizer, range(1, 2))
    assert_same(snapshot(changing), snapshot(twin))
    if change != "period":  # step 1 // 2 and mask 0: one draw
        assert differs(snapshot(changing), snapshot(unchanged))


def test_a_gradient_may_change_its_layout_or_dtype():
    """Gradients with other strides or another dtype than last time are read as they are now."""
    (param,) = make_params(((6, 6),), BF16)
    param.grad_dtype = None  # any
    (twin,) = make_params(((6, 6),), BF16)
    twin.grad_dtype = None
    optimizers = make_optimizer([param], "auto"), make_optimizer([twin], "reference")
    # One after the other the dtype, the strides, the dtype, the strides and both become others.
    forms = [torch.clone, lambda g: g.float(), lambda g: transposed(g.float()), transposed]
    forms += [torch.clone, lambda g: transposed(g.float())]
    for step, form in enumerate(forms):
        param.grad = form(make_grad(param, 0, step))
        twin.grad = make_grad(twin, 0, step).to(param.grad.dtype)
        for optimizer in optimizers:
            optimizer.step()
    a, b = (snapshot(optimizer) for optimizer in optimizers)
    torch.testing.assert_close(a, b)
    (wrong,) = make_params(((6, 6),), BF16)
    wrong_optimizer = make_optimizer([wrong], "reference")
    wrong.grad_dtype = None
    for step, form in enumerate(forms):
        wrong.grad = form(make_grad(wrong, 0, step)).mT  # control: read in the wrong order
        wrong_optimizer.step()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(snapshot(wrong_optimizer), b)
