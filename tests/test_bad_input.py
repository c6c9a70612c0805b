"""Laws of bad input: a clear message, and nothing half-changed."""

import copy
import math
import re

import pytest
import torch
from small_runs import assert_same, make_params, params_of, set_grads, snapshot, train
from torch.nn import Parameter

from graddrop import FusedGradDropAdamW, Shard, graddrop_adamw_, schedules
from graddrop.overlap import check_disjoint

NAN, INF = math.nan, math.inf
SHAPES = ((5, 7), (4,))

# Knob, bad value, error, what its message says. Each is refused by the constructor and, once the
# optimizer is trained, by a new group and by step().
KNOBS = [
    ("lr", -1e-3, ValueError, "Invalid learning rate: -0.001: expected a finite number >= 0"),
    ("lr", NAN, ValueError, "Invalid learning rate: nan"),
    ("lr", INF, ValueError, "Invalid learning rate: inf"),
    ("lr", "1e-3", TypeError, "Invalid learning rate: '1e-3': expected a number"),
    ("lr", None, TypeError, "Invalid learning rate: None: expected a number"),
    ("lr", torch.tensor([1e-3, 1e-3]), ValueError, "learning rate: tensor of shape (2,): expected"),
    ("lr", torch.tensor(-1.0), ValueError, "Invalid learning rate: -1.0"),
    ("betas", (-0.1, 0.9), ValueError, "Invalid beta parameter at index 0: -0.1: expected a num"),
    ("betas", (0.9, 1.0), ValueError, "Invalid beta parameter at index 1: 1.0: expected a number"),
    ("betas", (NAN, 0.9), ValueError, "Invalid beta parameter at index 0: nan"),
    ("betas", (0.9,), ValueError, "Invalid betas: (0.9,): expected a pair"),
    ("betas", (0.9, 0.99, 0.999), ValueError, "expected a pair"),
    ("betas", 0.9, ValueError, "Invalid betas: 0.9: expected a pair"),
    ("betas", ("0.9", 0.9), TypeError, "Invalid beta parameter at index 0: '0.9'"),
    ("eps", -1e-8, ValueError, "Invalid epsilon value: -1e-08: expected a finite number >= 0"),
    ("eps", NAN, ValueError, "Invalid epsilon value: nan"),
    ("weight_decay", -0.1, ValueError, "Invalid weight_decay value: -0.1: expected a finite"),
    ("weight_decay", INF, ValueError, "Invalid weight_decay value: inf"),
    ("drop_prob", -0.1, ValueError, "Invalid drop_prob value: -0.1: expected a probability"),
    ("drop_prob", 1.1, ValueError, "Invalid drop_prob value: 1.1: expected a probability"),
    ("drop_prob", NAN, ValueError, "Invalid drop_prob value: nan: expected a probability"),
    ("drop_prob", "half", TypeError, "Invalid drop_prob: 'half': expected a number"),
    ("drop_prob", None, TypeError, "Invalid drop_prob: None: expected a number"),
    ("drop_prob", True, TypeError, "Invalid drop_prob: True: expected a number"),
    ("drop_prob", torch.tensor(2.0), ValueError, "Invalid drop_prob value: 2.0"),
    ("drop_prob", torch.zeros(3), ValueError, "drop_prob: tensor of shape (3,): expected one"),
    ("granularity", "column", ValueError, "Invalid granularity: 'column': expected one of ('elem"),
    ("granularity", None, ValueError, "Invalid granularity: None"),
    ("period", "week", ValueError, "Invalid period: 'week': expected one of ('step', 'epoch'), or"),
    ("period", 0, ValueError, "Invalid period: 0: expected"),
    ("period", -3, ValueError, "Invalid period: -3: expected"),
    ("period", 1.5, ValueError, "Invalid period: 1.5: expected"),
    ("period", True, ValueError, "Invalid period: True: expected"),
    ("site", "state", ValueError, "Invalid site: 'state': expected one of ('grad', 'update', 'fre"),
    ("rescale", "yes", TypeError, "Invalid rescale: 'yes': expected a bool"),
    ("mask_decay", None, TypeError, "Invalid mask_decay: None: expected a bool"),
    ("maximize", 1, TypeError, "Invalid maximize: 1: expected a bool"),
    ("seed", -1, ValueError, "Invalid seed: -1: expected an integer in [0, 2**64)"),
    ("seed", 1 << 64, ValueError, "Invalid seed: 18446744073709551616: expected"),
    ("seed", 0.5, TypeError, "Invalid seed: 0.5: expected an int"),
    ("seed", None, TypeError, "Invalid seed: None: expected an int"),
]
IDS = [f"{name}={value!r}" for name, value, *_ in KNOBS]


def trained(**knobs):
    """An optimizer that has made two steps and has new gradients."""
    knobs = {"lr": 1e-2, "seed": 3} | knobs
    optimizer = FusedGradDropAdamW(make_params(SHAPES), **knobs)
    train(optimizer, 2)
    set_grads(params_of(optimizer), 2)
    return optimizer


def groups_without_params(optimizer):
    """Everything in the groups but the parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


class Untouched:
    """Holds an optimizer to being, afterwards, what it was: values, state, groups, counters."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.tensors = snapshot(optimizer)
        self.params = params_of(optimizer)
        self.groups = copy.deepcopy(groups_without_params(optimizer))
        self.draws = optimizer.draws
        self.twin = copy.deepcopy(optimizer)

    def check(self, **restored):
        """Compare; ``restored`` is set in the groups first. Then go on as if nothing had been."""
        for group in self.optimizer.param_groups:
            group.update(restored)
        assert [id(p) for p in params_of(self.optimizer)] == [id(p) for p in self.params]
        assert_same(snapshot(self.optimizer), self.tensors)
        assert groups_without_params(self.optimizer) == self.groups
        assert self.optimizer.draws == self.draws
        for optimizer in (self.optimizer, self.twin):
            train(optimizer, range(2, 4))
        assert_same(snapshot(self.optimizer), snapshot(self.twin))


@pytest.mark.parametrize("knob, value, error, message", KNOBS, ids=IDS)
def test_a_bad_knob_is_refused(knob, value, error, message):
    """By the constructor, by a new group and, set in a group by hand, by step()."""
    with pytest.raises(error, match=re.escape(message)):
        FusedGradDropAdamW(make_params(SHAPES), **{knob: value})
    optimizer = trained()
    untouched = Untouched(optimizer)
    with pytest.raises(error, match=re.escape(message)):
        optimizer.add_param_group({"params": make_params(((2,),)), knob: value})
    good = optimizer.param_groups[0][knob]
    optimizer.param_groups[0][knob] = value
    with pytest.raises(error, match=re.escape(message)):
        optimizer.step()
    untouched.check(**{knob: good})


def test_rescaling_what_is_never_kept_is_refused():
    """drop_prob=1 with rescale=True divides by zero, also where a schedule or tensor says so."""
    message = "rescale=True divides by the keep probability, which is 0 at drop_prob=1.0"
    ways = (1.0, torch.tensor(1.0), schedules.Constant(1.0), lambda step: 1.0)
    for way in ways:
        with pytest.raises(ValueError, match=message):
            FusedGradDropAdamW(make_params(SHAPES), drop_prob=way, rescale=True)
    params = make_params(SHAPES)
    optimizer = FusedGradDropAdamW(params, drop_prob=schedules.Linear(0.5, 1.0, 2), rescale=True)
    train(optimizer, 2)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=message):
        train(optimizer, range(2, 3))
    assert_same(snapshot(optimizer), before)
    FusedGradDropAdamW(params, drop_prob=1.0)  # control: without rescaling it is a choice


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedules.Constant(1.5), "Invalid drop_prob value: 1.5"),
        (lambda: schedules.Linear(-0.1, 0.5, 10), "Invalid drop_prob value: -0.1"),
        (lambda: schedules.Cosine(0.1, NAN, 10), "Invalid drop_prob value: nan"),
        (lambda: schedules.Linear(0.1, 0.5, 0), "Invalid n_steps value: 0"),
    ],
)
def test_a_bad_schedule_is_refused(make, message):
    """A schedule that leaves [0, 1] says so when it is made."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_that_fails_changes_nothing():
    """A callable that leaves [0, 1] or raises is refused where it does."""
    optimizer = trained(drop_prob=lambda step: {0: 0.1, 1: 0.2, 2: 1.2}[step])
    before, draws = snapshot(optimizer), optimizer.draws
    with pytest.raises(ValueError, match=re.escape("Invalid drop_prob value: 1.2")):
        optimizer.step()
    assert_same(snapshot(optimizer), before)
    assert optimizer.draws == draws
    good = trained()
    untouched = Untouched(good)
    with pytest.raises(ZeroDivisionError):
        good.add_param_group({"params": make_params(((2,),)), "drop_prob": lambda step: 1 / 0})
    untouched.check()


def shared():
    """Two parameters that lie in one tensor and meet."""
    whole = torch.zeros(10)
    return [Parameter(whole[:6]), Parameter(whole[5:])]


def interleaved():
    """A column, a whole row between, and a part of that column: the first and last meet."""
    whole = torch.zeros(4, 4)
    return [Parameter(whole[:, 0]), Parameter(whole[0, 1:]), Parameter(whole[2:, 0])]


def non_leaf():
    """A tensor that autograd computed."""
    return torch.zeros(3, requires_grad=True) * 2


class Wrapper(torch.Tensor):
    """A tensor subclass that holds its data elsewhere."""

    @staticmethod
    def __new__(cls, shape):
        """No storage of its own."""
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Nothing works."""
        raise NotImplementedError


P3 = Parameter(torch.zeros(3))
PARAMS = {
    "nothing": (list, ValueError, "optimizer got an empty parameter list"),
    "a tensor": (lambda: torch.zeros(3), TypeError, "params argument given to the optimizer"),
    "a number": (lambda: [1.0], TypeError, "optimizer can only optimize Tensors, got float"),
    "a set": (lambda: {Parameter(torch.zeros(3))}, TypeError, "ordered collections"),
    "a set in a group": (lambda: [{"params": {P3}}], TypeError, "ordered collections"),
    "an integer": (
        lambda: [torch.zeros(3, dtype=torch.int64)],
        TypeError,
        "expected a real floating-point parameter of 16 to 64 bits, got dtype torch.int64",
    ),
    "complex": (lambda: [Parameter(torch.zeros(3, dtype=torch.complex64))], TypeError, "complex64"),
    "8 bits": (
        lambda: [torch.zeros(3, dtype=torch.float8_e4m3fn)],
        TypeError,
        "got dtype torch.float8_e4m3fn",
    ),
    "meta": (lambda: [Parameter(torch.zeros(3, device="meta"))], ValueError, "materialise"),
    "a wrapper": (lambda: [Wrapper((3,))], ValueError, "got Wrapper of shape (3,)"),
    "sparse": (lambda: [torch.eye(3).to_sparse()], ValueError, "expected a strided parameter"),
    "expanded": (
        lambda: [torch.zeros(1).expand(3).requires_grad_()],
        ValueError,
        "whose entries lie apart, got shape (3,) with strides (0,): call .contiguous()",
    ),
    "no leaf": (lambda: [non_leaf()], ValueError, "can't optimize a non-leaf Tensor"),
    "twice": (lambda: [P3, P3], ValueError, "appears twice in one param group"),
    "in two groups": (
        lambda: [{"params": [P3]}, {"params": [P3]}],
        ValueError,
        "some parameters appear in more than one parameter group",
    ),
    "twice by name": (lambda: [("a", P3), ("b", P3)], ValueError, "appears twice"),
    "sharing memory": (shared, ValueError, "parameters 0 and 1 of shapes (6,) and (5,) share mem"),
    "sharing memory between groups": (
        lambda: [{"params": [param]} for param in shared()],
        ValueError,
        "share memory",
    ),
    "interleaved": (interleaved, ValueError, "parameters 0 and 2 of shapes (4,) and (2,) share"),
    "some names": (lambda: [("a", P3), Parameter(torch.zeros(2))], ValueError, "names are missing"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_a_bad_parameter_is_refused(case):
    """By the constructor, and in a new group, which leaves the optimizer as it was."""
    make, error, message = PARAMS[case]
    with pytest.raises(error, match=re.escape(message)):
        FusedGradDropAdamW(make())
    if case in ("nothing", "a tensor", "a number"):  # which are no groups, or good ones
        return
    optimizer = trained()
    untouched = Untouched(optimizer)
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group({"params": make()})
    untouched.check()


def test_neighbours_in_memory_are_welcome():
    """Control: parameters that lie in one tensor without meeting are good parameters."""
    whole = torch.zeros(6, 4)
    params = [
        Parameter(part) for part in (whole[:2], whole[2:4, 0], whole[2:4, 1:], whole[4:, ::2])
    ]
    check_disjoint(params, [whole[4:, 1::2], torch.zeros(0)])
    FusedGradDropAdamW(params)


GROUPS = [
    (None, TypeError, "param_group must be a dict"),
    ({"lr": 0.1}, KeyError, "params"),
    ({"params": [("name", Parameter(torch.zeros(3)))]}, ValueError, "with/without names"),
    ({"stream_ids": [7]}, ValueError, "expected 2 stream_ids, one per parameter, got 1"),
    ({"stream_ids": [0, 9]}, ValueError, "expected stream_ids that no other parameter has"),
    ({"stream_ids": [9, 9]}, ValueError, "expected stream_ids that no other parameter has"),
    ({"stream_ids": [2, 1 << 30]}, ValueError, "Invalid stream id: 1073741824: expected an int"),
    ({"stream_ids": [2, -1]}, ValueError, "Invalid stream id: -1"),
    ({"stream_ids": [2, 0.5]}, ValueError, "Invalid stream id: 0.5"),
    ({"layers": [1]}, ValueError, "expected 2 layers, one per parameter, got 1"),
    ({"layers": -1}, ValueError, "Invalid layer: -1: expected an integer >= 0, or None"),
    ({"layers": [1, "two"]}, ValueError, "Invalid layer: 'two'"),
    ({"granularity": "layer"}, ValueError, 'granularity="layer" has to know the layers: pass'),
]


@pytest.mark.parametrize("group, error, message", GROUPS)
def test_a_bad_group_is_refused(group, error, message):
    """A group that does not fit leaves the optimizer as it was."""
    optimizer = trained()
    untouched = Untouched(optimizer)
    if isinstance(group, dict) and error is not KeyError:
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
    "a step of many": (lambda s: s["state"][1].update(step=torch.zeros(2)), "one number"),
    "amsgrad": (lambda s: s["param_groups"][0].update(amsgrad=True), "without amsgrad"),
    "a bad knob": (lambda s: s["param_groups"][0].update(drop_prob=7.0), "Invalid drop_prob value"),
    "a bad period": (lambda s: s["param_groups"][0].update(period="x"), "Invalid period: 'x'"),
    "fewer stream ids": (
        lambda s: s["param_groups"][0].update(stream_ids=[0]),
        "expected 2 stream_ids, one per parameter, got 1",
    ),
    "more layers": (
        lambda s: s["param_groups"][0].update(layers=[0, 1, 2]),
        "expected 2 layers, one per parameter, got 3",
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


def test_a_draw_outside_its_range_is_refused():
    """new_mask names a mask with 32 bits."""
    optimizer = trained(period="epoch")
    untouched = Untouched(optimizer)
    for draw, error in (
        (-1, ValueError),
        (1 << 32, ValueError),
        (1.5, TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match=f"Invalid draw: {draw}"):
            optimizer.new_mask(draw)
    untouched.check()


def test_the_mask_of_a_stranger_is_refused():
    """keep_mask knows the optimizer's own parameters only, by identity."""
    optimizer = trained()
    with pytest.raises(ValueError, match=re.escape("got shape (5, 7)")):
        optimizer.keep_mask(Parameter(params_of(optimizer)[0].detach().clone()))


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
    ({"stream_ids": [1 << 30]}, ValueError, "Invalid stream id"),
    ({"draw": -1}, ValueError, "Invalid draw: -1"),
    ({"draw": 0.5}, TypeError, "Invalid draw: 0.5"),
    ({"lr": -1.0}, ValueError, "Invalid learning rate"),
    ({"drop_prob": torch.tensor(NAN)}, ValueError, "Invalid drop_prob value: nan"),
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
        {"state_steps": [torch.zeros((), device="meta")], "backend": "cpu"},
        RuntimeError,
        "expected step on cpu, where the cpu backend counts, got it on meta",
    ),
    (
        {"shards": [Shard((5, 3), (1, 0))]},
        ValueError,
        "expected a shard inside its whole, got shape (5, 3) at (1, 0) of (5, 3)",
    ),
    ({"shards": [Shard((15,), (0,))]}, ValueError, "expected a shard inside its whole"),
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
