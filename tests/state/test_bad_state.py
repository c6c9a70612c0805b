"""Laws of bad gradients, states and arguments of a step: a clear message, nothing half-changed."""

import copy
import re

import pytest
import torch
from helpers.small_runs import assert_same, make_params, params_of, set_grads, snapshot, train
from helpers.untouched import Untouched, trained
from torch.nn import Parameter

from graddrop import FusedGradDropAdamW, Shard, graddrop_adamw_


def sparse(param):
    """A gradient as sparse embeddings give it."""
    return torch.eye(*param.shape).to_sparse()


GRADS = {  # set through .data where the setter of .grad would refuse
    "sparse": (sparse, "does not support sparse gradients, got layout torch.sparse_coo"),
    "complex": (lambda p: torch.zeros(p.shape, dtype=torch.complex64), "got dtype torch.complex64"),
    "integer": (lambda p: torch.zeros(p.shape, dtype=torch.int32), "got dtype torch.int32"),
    "another shape": (lambda p: torch.zeros(7, 5), "expected a gradient of shape (5, 7) on cpu"),
    "another device": (lambda p: torch.zeros(5, 7, device="meta"), "on meta: gradient and param"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", GRADS)
def test_a_bad_gradient_is_refused(backend, device, case, first):
    """At the first step and at a later one; also the parameters before it stay as they were."""
    make, message = GRADS[case]
    good, bad = make_params(((4,), (5, 7)), device=device)
    optimizer = FusedGradDropAdamW([good, bad], backend=backend)
    if not first:
        train(optimizer, 1)
    set_grads([good, bad], 1)
    before, draws = snapshot(optimizer), optimizer.draws
    grad = make(bad).to(device) if case != "another device" else make(bad)

    class Odd(Parameter):
        """A parameter whose gradient is what the test says."""

        @property
        def grad(self):
            """Unchecked, unlike a tensor's own."""
            return grad

    bad.__class__ = Odd
    with pytest.raises(
        RuntimeError, match=re.escape(message.replace("on cpu", f"on {bad.device}"))
    ):
        optimizer.step()
    bad.__class__ = Parameter
    assert_same(snapshot(optimizer), before)
    assert optimizer.draws == draws
    assert (good in optimizer.state) != first


STATES = {
    "no groups": (lambda s: s.pop("param_groups"), "missing keys: ['param_groups']"),
    "no state": (lambda s: s.pop("state"), "missing keys: ['state']"),
    "fewer groups": (lambda s: s["param_groups"].clear(), "different number of parameter groups"),
    "fewer params": (
        lambda s: s["param_groups"][0]["params"].pop(),
        "expected 2 parameters, got 1",
    ),
    "no moment": (
        lambda s: s["state"][0].pop("exp_avg"),
        "for a parameter of shape (5, 7); missing: ['exp_avg']",
    ),
    "no step": (lambda s: s["state"][1].pop("step"), "missing: ['step']"),
    "another shape": (
        lambda s: s["state"][1].update(exp_avg_sq=torch.zeros(5)),
        "expected exp_avg_sq of shape (4,), got (5,)",
    ),
    "a number for a moment": (lambda s: s["state"][1].update(exp_avg=0.0), "got <class 'float'>"),
    "a moment of integers": (
        lambda s: s["state"][1].update(exp_avg=torch.zeros(4, dtype=torch.int64)),
        "expected exp_avg as a real floating-point tensor with data, got dtype torch.int64 on cpu",
    ),
    "a moment without data": (
        lambda s: s["state"][0].update(exp_avg_sq=torch.zeros(5, 7, device="meta")),
        "expected exp_avg_sq as a real floating-point tensor with data",
    ),
    "an id twice": (
        lambda s: s["param_groups"][0].update(params=[1, 1]),
        "expected an id for each parameter of the saved groups, got one twice",
    ),
    "ids as text": (
        lambda s: s.update(state={str(key): own for key, own in s["state"].items()}),
        "such as [0], got it by ['0', '1']: JSON makes texts of numbers",
    ),
    "a step of many": (lambda s: s["state"][1].update(step=torch.zeros(2)), "one number"),
    "amsgrad": (lambda s: s["param_groups"][0].update(amsgrad=True), "without amsgrad"),
    "Adam with its own decay": (
        lambda s: s["param_groups"][0].update(decoupled_weight_decay=False),
        "expected a state with decoupled weight decay, as of torch.optim.AdamW, got one of Adam",
    ),
    "a bad knob": (lambda s: s["param_groups"][0].update(drop_prob=7.0), "Invalid drop_prob value"),
    "a bad period": (lambda s: s["param_groups"][0].update(period="x"), "Invalid period: 'x'"),
    "fewer stream ids": (
        lambda s: s["param_groups"][0].update(stream_ids=[0]),
        "expected 2 stream_ids in param group 0, one per parameter, got 1",
    ),
    "more layers": (
        lambda s: s["param_groups"][0].update(layers=[0, 1, 2]),
        "expected 2 layers in param group 0, one per parameter, got 3",
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_a_wrong_state_dict_is_refused(case):
    """Missing keys, other shapes, values outside their range."""
    spoil, message = STATES[case]
    optimizer = trained()
    state_dict = copy.deepcopy(optimizer.state_dict())
    spoil(state_dict)
    untouched = Untouched(optimizer)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(state_dict)
    untouched.check()


def test_a_path_is_no_state():
    """What torch.load reads is."""
    optimizer = trained()
    untouched = Untouched(optimizer)
    with pytest.raises(TypeError, match="got <class 'str'>: of a file pass what torch.load reads"):
        optimizer.load_state_dict("checkpoint.pt")
    untouched.check()


MANGLED = {
    "gone": (lambda state: state.pop("exp_avg_sq"), "missing: ['exp_avg_sq']"),
    "reshaped": (
        lambda state: state.update(exp_avg=torch.zeros(35)),
        "expected exp_avg of shape (5, 7) on cpu, got shape (35,)",
    ),
    "another dtype": (
        lambda state: state.update(exp_avg=torch.zeros(5, 7, dtype=torch.bfloat16)),
        "expected exp_avg and exp_avg_sq of one dtype and one layout",
    ),
    "other strides": (
        lambda state: state.update(exp_avg=torch.zeros(7, 5).t()),
        "expected exp_avg and exp_avg_sq of one dtype and one layout",
    ),
    "step of another dtype": (
        lambda state: state.update(step=torch.tensor(2)),
        "expected step as a float32 tensor of one element, got torch.int64",
    ),
    "a step elsewhere": (
        lambda state: state.update(step=torch.zeros((), device="meta")),
        "expected step on cpu, where the cpu backend counts, got it on meta",
    ),
    "a step that is no tensor": (
        lambda state: state.update(step=2),
        "expected step as a float32 tensor of one element, got 2",
    ),
}


@pytest.mark.parametrize("case", MANGLED)
def test_a_mangled_state_is_refused(case):
    """State that was changed by hand is checked before it is used."""
    spoil, message = MANGLED[case]
    optimizer = trained()
    param, other = params_of(optimizer)
    spoil(optimizer.state[param])
    before = snapshot(optimizer, [other])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        optimizer.step()
    assert_same(snapshot(optimizer, [other]), before)
    assert optimizer.draws == [2]


def test_a_plan_that_fails_leaves_no_state():
    """What the tables cannot hold is refused before the other parameters' state is there."""
    good, bad = make_params(((3,), (2,) * 10))
    optimizer = FusedGradDropAdamW([good, bad], backend="cpu")
    set_grads([good, bad], 0)
    bad.grad = torch.zeros((2,) * 10).permute(*reversed(range(10)))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="at most 8 strided dimensions"):
        optimizer.step()
    assert not optimizer.state
    assert_same(snapshot(optimizer), before)
    assert optimizer.draws == [0]


@pytest.mark.parametrize("named", [True, False])
def test_a_note_names_the_parameter(named):
    """Of a gradient that does not fit, of state in memory, of state that is loaded."""
    params = make_params(((3,), (4,), (2, 2)))
    added = list(zip("abc", params, strict=True)) if named else params
    optimizer = FusedGradDropAdamW([{"params": added[:1]}, {"params": added[1:]}])
    train(optimizer, 1)
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][2]["exp_avg"] = torch.zeros(5)
    notes = []
    with pytest.raises(ValueError, match="got \\(5,\\)") as refused:
        optimizer.load_state_dict(state_dict)
    notes += refused.value.__notes__
    del optimizer.state[params[2]]["exp_avg"]
    with pytest.raises(RuntimeError, match="missing: \\['exp_avg'\\]") as refused:
        optimizer.step()
    notes += refused.value.__notes__
    params[2].grad = params[2].grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients") as refused:
        optimizer.step()
    notes += refused.value.__notes__
    name = ', "c"' if named else ""
    assert notes == [f"This is parameter 1 of param group 1{name}."] * 3


def test_groups_that_were_taken_away_are_missed():
    """param_groups is no list to edit; the message says what to do instead."""
    first, second = make_params(((3,), (4,)))
    optimizer = FusedGradDropAdamW([{"params": [first]}, {"params": [second]}])
    train(optimizer, 1)
    optimizer.param_groups.pop()
    before = snapshot(optimizer, [first, second])
    with pytest.raises(RuntimeError, match="expected the 2 param groups that were added, got 1"):
        train(optimizer, 1)
    assert_same(snapshot(optimizer, [first, second]), before)


@pytest.mark.parametrize("copied", [False, True], ids=["bare", "copied"])
def test_groups_that_were_appended_are_told_what_to_do(copied):
    """As torch's users make them, without what is ours, or with another group's."""
    first, second = make_params(((3,), (4,)))
    optimizer = FusedGradDropAdamW([first])
    train(optimizer, 1)
    others = optimizer.param_groups[0] if copied else {"lr": 0.1}
    optimizer.param_groups.append({**others, "params": [second]})
    before = snapshot(optimizer, [first, second])
    for use in (optimizer.step, lambda: optimizer.keep_mask(first), optimizer.log_values):
        with pytest.raises(RuntimeError, match="use add_param_group"):
            use()
    assert_same(snapshot(optimizer, [first, second]), before)


@pytest.mark.parametrize(
    "backend, dtype, message",
    [
        ("cpu", torch.float64, 'backend="cpu" has no code for param, grad, moments of'),
        ("triton", torch.float64, 'backend="triton" takes float32, bfloat16 and float16, got'),
    ],
)
def test_a_backend_that_cannot_says_so(backend, dtype, message):
    """A backend that is asked for by name and cannot serve a tensor changes none."""
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    params = [*make_params(((3,),)), *make_params(((4,),), dtype)]
    optimizer = FusedGradDropAdamW(params, backend=backend)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        train(optimizer, 1)
    assert_same(snapshot(optimizer), before)
    assert optimizer.draws == [0] and not optimizer.state


def arguments():
    """Good arguments of one functional step, as a dictionary."""
    param, grad = torch.ones(5, 3), torch.ones(5, 3)
    return {
        "params": [param],
        "grads": [grad],
        "exp_avgs": [torch.zeros(5, 3)],
        "exp_avg_sqs": [torch.zeros(5, 3)],
        "state_steps": [torch.zeros(())],
        "lr": 0.1,
        "draw": 0,
    }


FUNCTIONAL = [
    ({"grads": []}, ValueError, "expected 1 grads, one per parameter, got 0"),
    ({"stream_ids": [0, 1]}, ValueError, "expected 1 stream_ids, one per parameter, got 2"),
    ({"stream_ids": 3}, TypeError, "expected stream_ids as a list, one per parameter, got <class"),
    ({"layers": 3}, TypeError, "expected layers as a list, one per parameter, got <class 'int'>"),
    ({"shards": [(5, 3)]}, TypeError, "a graddrop.Shard(global_shape, offset), got (5, 3)"),
    ({"stream_ids": [1 << 30]}, ValueError, "Invalid stream id"),
    ({"draw": -1}, ValueError, "Invalid draw: -1"),
    ({"draw": 0.5}, TypeError, "Invalid draw: 0.5"),
    ({"lr": -1.0}, ValueError, "Invalid learning rate"),
    ({"drop_prob": torch.tensor(float("nan"))}, ValueError, "Invalid drop_prob value: nan"),
    ({"drop_prob": torch.tensor(1.0), "rescale": True}, ValueError, "rescale=True divides by"),
    ({"granularity": "layer"}, ValueError, "has to know the layers"),
    ({"backend": "cuda"}, ValueError, "Invalid backend: 'cuda'"),
    ({"grads": [torch.ones(3, 5)]}, RuntimeError, "expected a gradient of shape (5, 3)"),
    ({"exp_avgs": [torch.ones(3, 5)]}, RuntimeError, "expected exp_avg of shape (5, 3)"),
    ({"state_steps": [torch.zeros(2)]}, RuntimeError, "expected step as a float32 tensor of one"),
    (
        {"params": [torch.ones(5, 3, dtype=torch.int32)]},
        TypeError,
        "expected a real floating-point",
    ),
    (
        {"state_steps": [torch.zeros((), device="meta")]},
        RuntimeError,
        "expected state_steps with data, got a meta tensor",
    ),
    ({"grads": [None]}, TypeError, "expected grads of tensors, got <class 'NoneType'>"),
    ({"params": [1.0]}, TypeError, "expected params of tensors, got <class 'float'>"),
    ({"betas": (0.9,)}, ValueError, "Invalid betas: (0.9,): expected a pair of numbers in [0, 1)"),
    (
        {name: [torch.zeros(5, 3, dtype=torch.int32)] for name in ("exp_avgs", "exp_avg_sqs")},
        RuntimeError,
        "expected exp_avg as a real floating-point tensor",
    ),
    (
        {name: [torch.zeros(1, 3).expand(5, 3)] for name in ("exp_avgs", "exp_avg_sqs")},
        RuntimeError,
        "whose entries lie apart, got dtype torch.float32 with strides (0, 1)",
    ),
    (
        dict.fromkeys(("exp_avgs", "exp_avg_sqs"), [torch.zeros(5, 3)]),
        ValueError,
        "exp_avgs[0] and exp_avg_sqs[0] share memory: each needs its own",
    ),
    (
        {"shards": [Shard((5, 3), (1, 0))]},
        ValueError,
        "expected a shard inside its whole, got shape (5, 3) at (1, 0) of (5, 3)",
    ),
    ({"shards": [Shard((15,), (0,))]}, ValueError, "expected a shard inside its whole"),
    (
        {"shards": [Shard((9, 3), (-1, 0))]},
        ValueError,
        "expected a shard inside its whole, got shape (5, 3) at (-1, 0) of (9, 3)",
    ),
]


@pytest.mark.parametrize("change, error, message", FUNCTIONAL)
def test_a_bad_argument_of_the_function_is_refused(change, error, message):
    """graddrop_adamw_ checks what the optimizer would, before it changes anything."""
    good = arguments()
    with pytest.raises(error, match=re.escape(message)):
        graddrop_adamw_(**(good | change))
    for name, tensors in arguments().items():
        if isinstance(tensors, list):
            assert_same(good[name], tensors)
    graddrop_adamw_(**good)  # control: as they were, they are good
    assert good["state_steps"][0] == 1
