"""Laws of bad knobs and parameters: a clear message, and nothing half-changed."""

import math
import re

import pytest
import torch
from helpers.small_runs import assert_same, make_params, params_of, snapshot, train
from helpers.untouched import SHAPES, Untouched, trained
from torch.nn import Parameter
from torch.nn.parameter import UninitializedParameter

from graddrop import FusedGradDropAdamW, schedules
from graddrop.step.overlap import check_disjoint

NAN, INF = math.nan, math.inf
T = torch.tensor(0.5)

# Knob, bad value, error, what its message says. Each is refused by the constructor and, once the
# optimizer is trained, by a new group and by step().
KNOBS = [
    ("lr", -1e-3, ValueError, "Invalid learning rate: -0.001: expected a finite number >= 0"),
    ("lr", NAN, ValueError, "Invalid learning rate: nan"),
    ("lr", INF, ValueError, "Invalid learning rate: inf"),
    ("lr", "1e-3", TypeError, "Invalid learning rate: '1e-3': expected a number"),
    ("lr", None, TypeError, "Invalid learning rate: None: expected a number"),
    ("lr", torch.tensor([1e-3, 1e-3]), ValueError, "Tensor lr must be 1-element, got shape (2,)"),
    ("lr", torch.tensor(-1.0), ValueError, "Invalid learning rate: -1.0"),
    ("betas", (-0.1, 0.9), ValueError, "Invalid beta parameter at index 0: -0.1: expected a num"),
    ("betas", (0.9, 1.0), ValueError, "Invalid beta parameter at index 1: 1.0: expected a number"),
    ("betas", (NAN, 0.9), ValueError, "Invalid beta parameter at index 0: nan"),
    ("betas", (0.9,), ValueError, "Invalid betas: (0.9,): expected a pair"),
    ("betas", (0.9, 0.99, 0.999), ValueError, "expected a pair"),
    ("betas", 0.9, ValueError, "Invalid betas: 0.9: expected a pair"),
    ("betas", ("0.9", 0.9), TypeError, "Invalid beta parameter at index 0: '0.9'"),
    ("betas", (0.9, T), ValueError, "betas must be either both floats or both Tensors"),
    ("betas", (torch.zeros(2), T), ValueError, "Tensor betas[0] must be 1-element"),
    ("betas", (T, torch.zeros(2)), ValueError, "Tensor betas[1] must be 1-element"),
    ("betas", (T, torch.tensor(1.0)), ValueError, "Invalid beta parameter at index 1: 1.0"),
    ("betas", (torch.zeros((), device="meta"), T), ValueError, "Invalid betas[0]: expected a ten"),
    ("amsgrad", True, ValueError, "Invalid amsgrad: True: FusedGradDropAdamW has it at False only"),
    ("foreach", True, ValueError, "Invalid foreach: True: FusedGradDropAdamW has it at None only"),
    ("differentiable", True, ValueError, "Invalid differentiable: True"),
    ("eps", -1e-8, ValueError, "Invalid epsilon value: -1e-08: expected a finite number >= 0"),
    ("eps", NAN, ValueError, "Invalid epsilon value: nan"),
    ("weight_decay", -0.1, ValueError, "Invalid weight_decay value: -0.1: expected a finite"),
    ("weight_decay", INF, ValueError, "Invalid weight_decay value: inf"),
    ("drop_prob", -0.1, ValueError, "Invalid drop_prob value: -0.1: expected a probability"),
    ("drop_prob", 1.1, ValueError, "Invalid drop_prob value: 1.1: expected a probability"),
    ("drop_prob", NAN, ValueError, "Invalid drop_prob value: nan: expected a probability"),
    ("drop_prob", "half", TypeError, "Invalid drop_prob: 'half': expected a number in [0, 1], got"),
    ("drop_prob", None, TypeError, "Invalid drop_prob: None: expected a number"),
    ("drop_prob", True, TypeError, "Invalid drop_prob: True: expected a number"),
    ("drop_prob", torch.tensor(2.0), ValueError, "Invalid drop_prob value: 2.0"),
    ("drop_prob", torch.zeros(3), ValueError, "Tensor drop_prob must be 1-element"),
    ("granularity", "column", ValueError, "Invalid granularity: 'column': expected one of ('elem"),
    ("granularity", None, ValueError, "Invalid granularity: None"),
    (
        "period",
        "week",
        ValueError,
        "Invalid period: 'week': expected one of ('step', 'epoch', 'run')",
    ),
    ("period", 0, ValueError, "Invalid period: 0: expected"),
    ("period", -3, ValueError, "Invalid period: -3: expected"),
    ("period", 1.5, ValueError, "Invalid period: 1.5: expected"),
    ("period", True, ValueError, "Invalid period: True: expected"),
    ("site", "state", ValueError, "Invalid site: 'state': expected one of ('grad', 'update', 'fre"),
    ("rescale", "yes", TypeError, "Invalid rescale: 'yes': expected a bool"),
    ("rescale", "alignment", ValueError, 'expected site="update", got "grad"'),
    ("mask_decay", None, TypeError, "Invalid mask_decay: None: expected a bool"),
    ("maximize", 1, TypeError, "Invalid maximize: 1: expected a bool"),
    ("seed", -1, ValueError, "Invalid seed: -1: expected an integer in [0, 2**64)"),
    ("seed", 1 << 64, ValueError, "Invalid seed: 18446744073709551616: expected"),
    ("seed", 0.5, TypeError, "Invalid seed: 0.5: expected an int"),
    ("seed", None, TypeError, "Invalid seed: None: expected an int"),
]
IDS = [f"{name}={value!r}" for name, value, *_ in KNOBS]


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
    if "either both" in message:  # a scheduler writes the first beta alone
        optimizer.step()
        return
    with pytest.raises(error, match=re.escape(message)):
        optimizer.step()
    untouched.check(**{knob: good})


@pytest.mark.parametrize("knob, value, error, message", KNOBS, ids=IDS)
def test_a_bad_knob_of_a_later_group_is_refused(knob, value, error, message):
    """Not of the first alone; those before it are as they were."""
    if "either both" in message:
        pytest.skip("a scheduler writes the first beta alone")
    optimizer = trained()
    optimizer.add_param_group({"params": make_params(((2,),))})
    train(optimizer, range(2, 3))
    untouched = Untouched(optimizer)
    good = optimizer.param_groups[1][knob]
    optimizer.param_groups[1][knob] = value
    with pytest.raises(error, match=re.escape(message)):
        optimizer.step()
    optimizer.param_groups[1][knob] = good
    untouched.check()


@pytest.mark.parametrize("knob, value, error, message", KNOBS, ids=IDS)
def test_a_bad_knob_is_named_first(knob, value, error, message):
    """Before the parameters are walked, as torch does: they may be none, or a generator."""

    def walk():
        pytest.fail("parameters were walked")
        yield

    for params in (walk(), []):
        with pytest.raises(error, match=re.escape(message)):
            FusedGradDropAdamW(params, **{knob: value})


def test_rescaling_what_is_never_kept_is_refused():
    """drop_prob=1 with rescale=True divides by zero, also where a schedule or tensor says so."""
    message = "rescale=True divides by the keep probability, which is 0 at drop_prob=1.0"
    ways = (1.0, torch.tensor(1.0), schedules.Linear(1.0, 1.0, 1), lambda step: 1.0)
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
    "make, error, message",
    [
        (lambda: schedules.Linear(-0.1, 0.5, 10), ValueError, "Invalid drop_prob value: -0.1"),
        (lambda: schedules.Cosine(0.1, NAN, 10), ValueError, "Invalid drop_prob value: nan"),
        (lambda: schedules.Linear("0.1", 0.5, 10), TypeError, "'0.1': expected a number in"),
        (lambda: schedules.Cosine(0.1, None, 10), TypeError, "None: expected a number in"),
        (lambda: schedules.Linear(0.1, 0.5, 0), ValueError, "Invalid n_steps value: 0"),
        (lambda: schedules.Cosine(0.1, 0.5, None), TypeError, "n_steps value: None: expected an i"),
        (lambda: schedules.Stepwise((0.1, 0.5), 0), ValueError, "Invalid n_steps value: 0"),
        (lambda: schedules.Stepwise((0.1, 0.5), 1.5), TypeError, "n_steps value: 1.5: expected an"),
        (lambda: schedules.Stepwise((0.1, 1.5), 3), ValueError, "Invalid drop_prob value: 1.5"),
        (lambda: schedules.Stepwise((0.1, T), 3), TypeError, "expected a number in"),
        (lambda: schedules.Stepwise((), 3), ValueError, "Invalid drop_probs value: .*at least one"),
        (lambda: schedules.Stepwise(0.5, 3), TypeError, "value: 0.5: expected a list or tuple"),
        (lambda: schedules.Stepwise("0.5", 3), TypeError, "value: '0.5': expected a list or tup"),
    ],
)
def test_a_bad_schedule_is_refused(make, error, message):
    """A schedule that leaves [0, 1], or would fail at some step, says so when it is made."""
    with pytest.raises(error, match=message):
        make()


def test_a_schedule_that_comes_late_is_refused():
    """A group's schedule is known from its beginning on; the function has none."""
    optimizer = trained()
    untouched = Untouched(optimizer)
    good = optimizer.param_groups[0]["drop_prob"]
    optimizer.param_groups[0]["drop_prob"] = schedules.Linear(0.1, 0.5, 10)
    with pytest.raises(TypeError, match="give a schedule to the optimizer when the group is made"):
        optimizer.step()
    untouched.check(drop_prob=good)


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
    "a model": (
        lambda: torch.nn.Linear(2, 2),
        TypeError,
        "got <class 'torch.nn.modules.linear.Linear'>: pass model.named_parameters()",
    ),
    "a state dict": (
        lambda: torch.nn.Linear(2, 2).state_dict(),
        TypeError,
        "OrderedDict'>: pass model.named_parameters()",
    ),
    "a set": (lambda: {Parameter(torch.zeros(3))}, TypeError, "ordered collections"),
    "a set in a group": (lambda: [{"params": {P3}}], TypeError, "ordered collections"),
    "a model in a group": (
        lambda: [{"params": torch.nn.Linear(2, 2)}],
        TypeError,
        "linear.Linear'>: pass model.named_parameters()",
    ),
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
    "lazy": (lambda: [UninitializedParameter()], ValueError, "run the model once before"),
    "a wrapper": (lambda: [Wrapper((3,))], ValueError, "got Wrapper of shape (3,)"),
    "sparse": (lambda: [torch.eye(3).to_sparse()], ValueError, "expected a strided parameter"),
    "expanded to two": (
        lambda: [torch.zeros(1, 3).expand(2, 3).requires_grad_()],
        ValueError,
        "whose entries lie apart, got shape (2, 3) with strides (0, 1): call .contiguous()",
    ),
    "expanded": (
        lambda: [torch.zeros(1).expand(3).requires_grad_()],
        ValueError,
        "whose entries lie apart, got shape (3,) with strides (0,): call .contiguous()",
    ),
    "overlapping": (
        lambda: [Parameter(torch.zeros(7).as_strided((3, 3), (2, 1)))],
        ValueError,
        "whose entries lie apart, got shape (3, 3) with strides (2, 1): call .contiguous()",
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
    if case in (
        "nothing",
        "a tensor",
        "a number",
        "a model",
        "a state dict",
    ):  # which are no groups, or good ones
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
    flat = torch.zeros(30)  # one ends where the next begins, in whatever order they come
    params = [Parameter(flat[first:last]) for first, last in ((10, 20), (0, 10), (20, 29))]
    check_disjoint(params, [flat[29:]])
    FusedGradDropAdamW(params)


def test_a_draw_outside_its_range_is_refused():
    """new_mask names a mask with 32 bits."""
    optimizer = trained(period="epoch")
    optimizer.new_mask(1)
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
    with pytest.raises(TypeError, match="got <class 'str'>"):
        optimizer.keep_mask("0.weight")
