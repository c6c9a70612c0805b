"""Laws of ``FusedGradDropAdamW`` as a drop-in for ``torch.optim.AdamW``."""

import copy
import dataclasses
import inspect

import pytest
import torch
from helpers.small_runs import (
    NAMES,
    SHAPES,
    SMALL,
    assert_same,
    differs,
    make_grad,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, graddrop_adamw_
from graddrop.step.knobs import KNOBS as FIELDS
from graddrop.step.knobs import Knobs

CPU = torch.device("cpu")


def run(backend="reference", device=CPU, steps=2, shapes=SMALL, **knobs):
    """Parameters and state after some steps."""
    optimizer = make_optimizer(backend, device, shapes, **knobs)
    train(optimizer, steps)
    return snapshot(optimizer)


@pytest.mark.parametrize("amount", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
def test_without_a_mask_it_is_adamw(amount, maximize):
    """drop_prob=0 on the reference: torch.optim.AdamW to the last bit."""
    knobs = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": amount}
    ours = make_optimizer(drop_prob=0.0, maximize=maximize, **knobs)
    theirs = torch.optim.AdamW(make_params(), maximize=maximize, foreach=False, **knobs)
    for optimizer in (ours, theirs):
        train(optimizer, 5)
    assert_same(snapshot(ours), snapshot(theirs))
    assert differs(
        run(steps=5, shapes=SHAPES, maximize=maximize, **knobs), snapshot(theirs)
    )  # control: masked


KNOBS = {  # each with two values; beside the others' first values, the second makes another run
    "lr": (1e-2, 1e-3),
    "betas": ((0.9, 0.999), (0.5, 0.9)),
    "eps": (1e-8, 1e-1),
    "weight_decay": (0.01, 0.5),
    "drop_prob": (0.5, 0.0),
    "granularity": ("element", "row"),
    "period": ("step", 2),
    "site": ("update", "freeze"),
    "rescale": (False, True),
    "mask_decay": (True, False),
    "seed": (1, (1 << 64) - 1),
    "maximize": (False, True),
}


def test_every_knob_may_differ_per_group(backend, device):
    """A group for each knob, with its other value, is an optimizer of its own."""
    base = {knob: values[0] for knob, values in KNOBS.items()}
    changes = [{knob: values[1]} for knob, values in KNOBS.items()]
    params = make_params(((5, 3),) * len(changes), device=device)
    together = FusedGradDropAdamW(
        [{"params": [p], **change} for p, change in zip(params, changes, strict=True)],
        backend=backend,
        **base,
    )
    train(together, 2)
    for index, change in enumerate(changes):
        runs = []
        for knobs in (base | change, base)[: 2 if backend == "reference" else 1]:
            twins = make_params(((5, 3),) * len(changes), device=device)
            alone = FusedGradDropAdamW(
                [{"params": [twins[index]], "stream_ids": [index]}], backend=backend, **knobs
            )
            for step in range(2):
                twins[index].grad = make_grad(twins[index], index, step)
                alone.step()
            runs.append(snapshot(alone))
        assert_same(snapshot(together, [params[index]]), runs[0])
        assert backend != "reference" or differs(*runs), change  # control: the knob does something


def test_tensors_groups_and_names_make_the_same_run():
    """Parameters come as tensors, as groups, with names, from a generator: one run."""
    ways = {
        "tensors": lambda params: params,
        "generator": lambda params: (param for param in params),
        "groups": lambda params: [{"params": params[:2]}, {"params": params[2:]}],
        "names": lambda params: list(zip(NAMES, params, strict=True)),
        "generator of names": lambda params: zip(NAMES, params, strict=True),
        "groups of names": lambda params: [
            {"params": list(zip(NAMES, params, strict=True))[:3]},
            {"params": zip(NAMES[3:], params[3:], strict=True)},
        ],
    }
    runs = {}
    for name, way in ways.items():
        optimizer = FusedGradDropAdamW(way(make_params()), lr=1e-2, backend="reference")
        train(optimizer, 2)
        runs[name] = snapshot(optimizer)
    for name in ways:
        assert_same(runs[name], runs["tensors"])


def test_a_group_may_be_one_tensor():
    """A bare tensor as a group's params is a group of one."""
    (param,) = make_params(((3,),))
    optimizer = FusedGradDropAdamW([{"params": param}])
    train(optimizer, 1)
    assert params_of(optimizer) == [param] and len(optimizer.state) == 1


def test_lr_may_be_a_tensor(backend, device):
    """A learning rate in a tensor, here or on the device, is that learning rate."""
    lr = 2.0**-7
    expected = run(backend, device, lr=lr)
    assert_same(run(backend, device, lr=torch.tensor(lr)), expected)
    assert_same(run(backend, device, lr=torch.tensor([lr], device=device)), expected)
    assert differs(run(backend, device, lr=torch.tensor(lr * 1.01)), expected)


def test_to_maximize_is_to_minimize_the_opposite(backend, device):
    """maximize=True with a gradient is maximize=False with its negative, bit for bit."""
    ups = make_optimizer(backend, device, SMALL, maximize=True)
    downs = make_optimizer(backend, device, SMALL)
    for step in range(2):
        set_grads(params_of(ups), step)
        set_grads(params_of(downs), step)
        for param in params_of(downs):
            param.grad.neg_()
        ups.step()
        downs.step()
    assert_same(snapshot(ups), snapshot(downs))


def test_capturable_changes_no_number(backend, device):
    """capturable moves the step counter at most."""
    assert_same(run(backend, device, capturable=True), run(backend, device))


def test_a_closure_is_evaluated_with_gradients():
    """step(closure) takes the closure's gradients and returns its loss."""
    with_closure, plain = make_optimizer(shapes=((5, 7),)), make_optimizer(shapes=((5, 7),))

    def closure():
        with_closure.zero_grad()
        loss = (params_of(with_closure)[0] ** 2).sum()
        loss.backward()
        return loss

    for _ in range(2):
        loss = with_closure.step(closure)
        (param,) = params_of(plain)
        expected = (param.detach() ** 2).sum()
        param.grad = 2 * param.detach()
        assert plain.step() is None
        assert torch.equal(loss, expected)
    assert_same(snapshot(with_closure), snapshot(plain))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_step_leaves_the_grad_mode_as_it_was(enabled):
    """Whether it is made, its closure raises, or it is refused."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = FusedGradDropAdamW([param])
    param.grad = torch.ones(4)

    def fail():
        raise KeyError

    with torch.set_grad_enabled(enabled):
        optimizer.step()
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(KeyError):
            optimizer.step(fail)
        assert torch.is_grad_enabled() is enabled
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="learning rate"):
            optimizer.step()
        assert torch.is_grad_enabled() is enabled


def test_a_graph_with_old_values_is_refused(backend, device):
    """Autograd notices that a step has changed what a backward pass would read."""
    optimizer = make_optimizer(backend, device, shapes=SMALL)
    (param, _) = params_of(optimizer)
    loss = (param**2).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)  # control: without a step between, it may
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_zero_grad_both_ways_is_one_run(backend, device):
    """Gradients that are freed or zeroed between steps, at old or new addresses: one run."""
    runs = []
    for set_to_none in (True, False):
        optimizer = make_optimizer(backend, device, shapes=SMALL)
        held = []
        for step in range(4):
            for index, param in enumerate(params_of(optimizer)):
                grad = make_grad(param, index, step)
                if param.grad is None:
                    param.grad = grad
                else:
                    param.grad.add_(grad)
            optimizer.step()
            held.append([param.grad for param in params_of(optimizer)])  # keeps addresses taken
            optimizer.zero_grad(set_to_none=set_to_none)
        moved = held[0][0].data_ptr() != held[1][0].data_ptr()
        assert moved == set_to_none
        runs.append(snapshot(optimizer))
    assert_same(*runs)


def test_a_parameter_without_gradient_waits(backend, device):
    """Without a gradient a parameter, its state and its step stand still; the draws go on."""
    optimizer = make_optimizer(backend, device, shapes=SMALL)
    steady, guest = params_of(optimizer)
    twin = make_params(SMALL, device=device)[1].detach()
    moments = torch.zeros_like(twin), torch.zeros_like(twin)
    step_of_twin = torch.zeros((), device=device)
    for step in range(5):
        set_grads([steady, guest], step)
        if step in (0, 3):
            graddrop_adamw_(
                *([t] for t in (twin, guest.grad, *moments, step_of_twin)),
                lr=1e-2,
                seed=3,
                draw=step,
                stream_ids=[1],
                backend=backend,
            )
        else:
            guest.grad = None
        before = snapshot(optimizer, [guest])
        optimizer.step()
        if step not in (0, 3):
            assert_same(snapshot(optimizer, [guest]), before)
    state = optimizer.state[guest]
    assert_same(
        [guest.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"]],
        [twin, *moments, step_of_twin],
    )
    assert optimizer.state[steady]["step"] == 5
    assert optimizer.draws == [5]


def test_a_parameter_that_never_has_a_gradient_has_no_state():
    """As in torch, state begins with the first gradient."""
    optimizer = make_optimizer(shapes=((3,), (4,)))
    params_of(optimizer)[0].grad = torch.ones(3)
    optimizer.step()
    assert list(optimizer.state) == params_of(optimizer)[:1]


def test_a_step_without_any_gradient_is_counted():
    """Masks are numbered by optimizer steps, whoever had gradients in them."""
    optimizer, other = make_optimizer(), make_optimizer()
    train(optimizer, 1)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.draws == [2]
    train(optimizer, range(2, 3))
    train(other, 1)
    train(other, range(2, 3))
    assert optimizer.draws == [3] and other.draws == [2]
    assert differs(snapshot(optimizer), snapshot(other))


def test_all_executors_share_the_draws():
    """Parameters of two backends in one optimizer draw what each alone would, from step 0 on."""
    kinds = {"float32": torch.float32, "float64": torch.float64}
    params = {name: make_params(((70,),), dtype)[0] for name, dtype in kinds.items()}
    together = FusedGradDropAdamW(params.values(), site="freeze", period=2)
    for step in range(6):
        for index, (name, param) in enumerate(params.items()):
            param.grad = (
                None
                if (name, step) in (("float32", 3), ("float64", 4))
                else (
                    make_grad(param, index, step) + 10  # never zero
                )
            )
            keep, before = together.keep_mask(param), param.detach().clone()
            assert together.draws == [step // 2]
            together_moves = param.grad is not None
            params[name].keep = keep & together_moves, before
        together.step()
        for param in params.values():
            keep, before = param.keep
            assert torch.equal(param.detach() != before, keep)


def test_groups_join_at_the_present_draw(backend, device):
    """A group added during training draws the masks of the steps that it takes part in."""
    early, late = make_params(SMALL, device=device)
    joined = FusedGradDropAdamW([early], lr=1e-2, backend=backend)
    train(joined, 2, [early])
    joined.add_param_group({"params": [late], "lr": 1e-3})
    train(joined, range(2, 4), [early, late])

    twins = make_params(SMALL, device=device)
    alone = FusedGradDropAdamW(
        [{"params": twins[:1]}, {"params": twins[1:], "lr": 1e-3}], lr=1e-2, backend=backend
    )
    for step in range(4):
        set_grads(twins, step)
        if step < 2:
            twins[1].grad = None
        alone.step()
    assert_same(snapshot(joined), snapshot(alone))
    assert joined.draws == [4, 4]


@pytest.mark.parametrize("entrance", [FusedGradDropAdamW, graddrop_adamw_])
def test_defaults_are_those_of_the_knobs(entrance):
    """A knob is declared once: signatures name all of them, with the same defaults."""
    given = {name: p.default for name, p in inspect.signature(entrance).parameters.items()}
    declared = {f.name: f.default for f in dataclasses.fields(Knobs) if f.name in FIELDS}
    declared["betas"] = (declared.pop("beta1"), declared.pop("beta2"))
    declared["period"] = "step"
    if entrance is graddrop_adamw_:
        del declared["period"], declared["lr"]  # the caller names the draw and the rate
    assert {name: given[name] for name in declared} == declared


@pytest.mark.parametrize("option", ["amsgrad", "foreach", "differentiable"])
def test_arguments_of_adamw_are_taken_at_their_defaults(option):
    """Code that spells them out runs, by argument and in a group."""
    default = inspect.signature(torch.optim.AdamW).parameters[option].default
    plain = run()
    assert_same(run(**{option: default}), plain)
    params = make_params(SMALL)
    ours = FusedGradDropAdamW([{"params": params, option: default}], lr=1e-2, seed=3)
    assert ours.param_groups[0][option] is default


def test_all_arguments_of_adamw_are_arguments():
    """By the same names, in the same order where they may be given by place."""
    theirs = inspect.signature(torch.optim.AdamW).parameters
    ours = inspect.signature(FusedGradDropAdamW).parameters
    assert theirs.keys() <= ours.keys()
    by_place = [name for name, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(by_place)] == by_place
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default


@pytest.mark.parametrize("fused", [None, True, False])
def test_fused_says_who_takes_out_the_loss_scale(fused):
    """False: a GradScaler does, before the step, as other libraries ask; it lives in copies too."""
    optimizer = make_optimizer(shapes=SMALL, fused=fused)
    for each in (optimizer, copy.deepcopy(optimizer)):
        assert each._step_supports_amp_scaling is (fused is not False)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        set_grads(params_of(each), 0)
        for param in params_of(each):
            param.grad.mul_(4.0)
        scaler.scale(torch.ones(()))  # makes the scale
        scaler.step(each)
        torch.testing.assert_close(snapshot(each), run(steps=1))
        scaled = params_of(each)[0].grad / make_grad(params_of(each)[0], 0, 0)
        torch.testing.assert_close(scaled, torch.full_like(scaled, 1.0 if fused is False else 4.0))


@pytest.mark.parametrize("named", [False, True])
def test_its_repr_is_short(named):
    """With 391 parameters under twice the length of AdamW's; every knob is in it."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(391)]
    given = [(f"encoder.layer.{i // 16}.w{i}", p) for i, p in enumerate(params)]
    ours, theirs = (
        cls(given if named else params) for cls in (FusedGradDropAdamW, torch.optim.AdamW)
    )
    assert len(repr(ours)) < 2 * len(repr(theirs))
    for knob in (*KNOBS, "stream_ids", "steps_finished"):
        assert f"    {knob}: " in repr(ours)
    assert repr(ours).startswith("FusedGradDropAdamW (\nParameter Group 0\n")
