"""Laws of rescale="alignment": the step of what is kept goes by gradient and first moment."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.kernel_steps import every_second, transposed, unaligned
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_grad,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)

from graddrop import FusedGradDropAdamW, Shard, graddrop_adamw_
from graddrop.reference import moment_dots
from graddrop.step.backends import make_executor
from graddrop.testing import DTYPES, make_knobs, random_slot

KNOBS = {"site": "update", "rescale": "alignment"}
SHAPES = (*SMALL, (), (0, 3), (1027,))
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def alignments(optimizer):
    """Copies of all, in the order of their parameters."""
    return [optimizer.state[param]["alignment"].clone() for param in params_of(optimizer)]


def set_agreeing_grads(params, step):
    """Gradients that point more or less the same way at each step; the second's turns about."""
    for index, param in enumerate(params):
        grad = make_grad(param, index, 0) + 0.5 * make_grad(param, index, step)
        param.grad = -grad if index == 1 and step % 2 else grad


class Oracle:
    """One tensor by the published definition, in float64, without any code of ours."""

    def __init__(self, param, lr=1e-2, decay=1e-2):
        self.param, self.lr, self.decay = param.detach().double().cpu(), lr, decay
        self.m, self.v = torch.zeros_like(self.param), torch.zeros_like(self.param)
        self.s, self.n = 0.5, 0

    def step(self, grad, keep):
        """What a gradient makes of it."""
        grad = grad.double().cpu()
        norms = float(grad.norm() * self.m.norm())
        cosine = float((grad * self.m).sum()) / norms if norms else 0.0
        self.s = 0.9 * self.s + 0.1 / (1 + math.exp(-cosine / 2))
        self.n += 1
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad**2
        m_hat, v_hat = self.m / (1 - 0.9**self.n), self.v / (1 - 0.999**self.n)
        moved = self.param * (1 - self.lr * self.decay)
        moved = moved - self.s * self.lr * m_hat / (v_hat.sqrt() + 1e-8)
        self.param = torch.where(keep.cpu(), moved, self.param)


@pytest.mark.parametrize("granularity", ["element", "tensor"])
@pytest.mark.parametrize("maximize", [False, True])
def test_it_is_the_published_definition(backend, device, granularity, maximize):
    """Parameters, moments and alignments of six steps, of every shape."""
    ours = make_optimizer(
        backend, device, SHAPES, granularity=granularity, maximize=maximize, **KNOBS
    )
    oracles = [*map(Oracle, params_of(ours))]
    for step in range(6):
        set_agreeing_grads(params_of(ours), step)
        for oracle, param in zip(oracles, params_of(ours), strict=True):
            oracle.step(-param.grad if maximize else param.grad, ours.keep_mask(param))
        ours.step()
        for oracle, param in zip(oracles, params_of(ours), strict=True):
            state = ours.state[param]
            assert float(state["alignment"]) == pytest.approx(oracle.s, abs=3e-7)
            torch.testing.assert_close(param.detach().double().cpu(), oracle.param, **CLOSE)
            torch.testing.assert_close(state["exp_avg"].double().cpu(), oracle.m, **CLOSE)
    found = [oracle.s for oracle in oracles]
    assert found[0] > 0.53 and found[1] < 0.49 and found[3] == pytest.approx(0.5)


def assert_products(backend, device, slots):
    """A backend's products are the definition's."""
    start = torch.tensor(0.5, device=device)
    slots = [replace(slot, alignment=start.clone()) for slot in slots]
    knobs = make_knobs(**KNOBS)
    executor = make_executor(backend, slots, [knobs], device)
    executor.set_grads([slot.grad for slot in slots])
    executor.begin([knobs], torch.zeros(2, dtype=torch.int64, device=device), None, None)
    found = executor.moment_dots()
    for slot, dots in zip(slots, found, strict=True):
        expected = moment_dots(slot.grad, slot.exp_avg)
        slack = 1e-12 * float(expected[0] * expected[2]) ** 0.5
        torch.testing.assert_close(dots[::2], expected[::2], rtol=1e-12, atol=0)
        torch.testing.assert_close(dots[1], expected[1], rtol=0, atol=slack)


@pytest.mark.parametrize("begin", [0, 1, 127, 513, 1000])
def test_products_of_any_shard(backend, device, begin):
    """Entries are found, and no others, wherever in a block a shard begins and ends."""
    slots = [
        random_slot((size,), seed=size, shard=Shard((4096,), (begin,)), device=device)
        for size in (0, 1, 40, 1030, 2100)
    ]
    assert_products(backend, device, slots)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_products_of_any_layout(backend, device, dtypes):
    """Strided and unaligned operands, each by itself, and such as fp32 has no squares of."""
    if backend == "cpu" and torch.float16 in DTYPES[dtypes]:
        pytest.skip("the CPU kernel takes no float16")
    slots = []
    for change in (unaligned, transposed, every_second):
        for names in (("grad",), ("exp_avg", "exp_avg_sq"), ("param", "grad")):
            slot = random_slot((7, 150), DTYPES[dtypes], seed=len(slots), device=device)
            slots.append(replace(slot, **{name: change(getattr(slot, name)) for name in names}))
    for size in (1e-30, 1e30):
        slots.append(random_slot((700,), DTYPES[dtypes], seed=1, device=device))
        if torch.float16 not in DTYPES[dtypes]:
            slots[-1].grad.mul_(size)
            slots[-1].exp_avg.mul_(size)
    assert_products(backend, device, slots)


def test_products_are_the_same_for_any_number_of_threads():
    """The CPU kernel adds up in one order, whoever computed the parts."""
    runs = []
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            optimizer = make_optimizer("cpu", shapes=((301, 1027),), **KNOBS)
            train(optimizer, 2)
            runs.append(snapshot(optimizer))
    finally:
        torch.set_num_threads(threads)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("masked_norm", [False, True])
def test_a_norm_is_of_all_tensors(backend, device, masked_norm):
    """Those with alignments, whose gradients are read once for both, and the others."""
    params = make_params(((5, 7), (70,), (40,), (1027,), (9,)), device=device)
    groups = [
        {"params": params[:1], "drop_prob": 0.0},
        {"params": params[1:3], **KNOBS},
        {"params": params[3:4]},
        {"params": params[4:], **KNOBS, "granularity": "tensor"},
    ]
    optimizer = FusedGradDropAdamW(
        groups, drop_prob=0.5, max_grad_norm=0.3, masked_norm=masked_norm, backend=backend
    )
    for step in range(2):
        set_grads(params, step)
        counted = [param.grad for param in params]
        if masked_norm:
            counted[3] = optimizer.keep_mask(params[3]) * params[3].grad
        expected = math.sqrt(sum(float(grad.double().square().sum()) for grad in counted))
        optimizer.step()
        assert float(optimizer.grad_norm) == pytest.approx(expected, rel=1e-6)


def test_a_norm_reads_no_gradient_again(monkeypatch, backend, device):
    """The kernels' sums of squares are not asked for where products have them."""
    if backend == "reference":
        pytest.skip("the reference has no kernel whose calls could be told")

    class Unwanted:
        """Stands where a kernel stood."""

        def __getitem__(self, grid):
            raise AssertionError("squares were asked for")

        def __call__(self, *arguments):
            self[arguments]

    optimizer = make_optimizer(backend, device, max_grad_norm=1.0, **KNOBS)
    places = {
        "cpu": ["cpu.binding.Tables.grad_squares"],
        "triton": ["gpu.launch.dense_squares", "gpu.launch.strided_squares"],
    }
    for place in places[backend]:
        monkeypatch.setattr(f"graddrop.kernels.{place}", Unwanted())
    train(optimizer, 1)
    assert optimizer.grad_norm > 0
    optimizer.param_groups[0]["rescale"] = False
    with pytest.raises(AssertionError, match="squares were asked for"):  # control
        train(optimizer, 1)


@pytest.mark.parametrize("max_grad_norm", [None, 1e-2])
def test_a_loss_scale_leaves_no_trace(backend, device, max_grad_norm):
    """Nor does a clipping factor of the same step; an overflow leaves all as it was."""
    knobs = KNOBS | {"max_grad_norm": max_grad_norm}
    ours, plain = (make_optimizer(backend, device, SMALL, **knobs) for _ in range(2))
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    for step in range(3):
        for optimizer in (ours, plain):
            set_agreeing_grads(params_of(optimizer), step)
        for param in params_of(ours):
            param.grad = scaler.scale(param.grad)
        scaler.step(ours)
        scaler.update()
        plain.step()
    assert_same(snapshot(ours), snapshot(plain))
    before = snapshot(ours)
    params_of(ours)[0].grad.view(-1)[3] = torch.inf
    scaler.step(ours)
    assert_same(snapshot(ours), before)


@pytest.mark.parametrize("granularity", ["element", "layer"])
def test_what_has_no_mask_makes_adamws_step(backend, device, granularity):
    """An exempt group, and a parameter in no layer, are not scaled either; nor looked at."""
    runs = []
    for rescale in ("alignment", False):
        params = make_params(((40,), (5, 7)), device=device)
        free = {"layers": [None]} if granularity == "layer" else {"drop_prob": 0.0}
        groups = [{"params": params[:1], **free}, {"params": params[1:], "layers": [0]}]
        optimizer = FusedGradDropAdamW(
            groups, drop_prob=0.5, backend=backend, granularity=granularity, lr=1e-2,
            site="update", rescale=rescale,
        )  # fmt: skip
        for step in range(3):
            set_agreeing_grads(params, step)
            optimizer.step()
        runs.append([param.detach().clone() for param in params])
        if rescale:
            assert float(optimizer.state[params[0]]["alignment"]) == 0.5
            assert float(optimizer.state[params[1]]["alignment"]) != 0.5
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][1], runs[1][1])  # control


def test_without_a_gradient_it_stays(backend, device):
    """As moments do."""
    optimizer = make_optimizer(backend, device, SMALL, **KNOBS)
    first, second = params_of(optimizer)
    for step in range(2):
        set_agreeing_grads([first, second], step)
        optimizer.step()
    before = alignments(optimizer)
    set_agreeing_grads([first, second], 2)
    first.grad = None
    optimizer.step()
    after = alignments(optimizer)
    assert after[0] == before[0] and after[1] != before[1]


def test_loaded_masks_are_scaled_too(backend, device):
    """They replace the drawn ones, not what the group does with what is kept."""
    runs = []
    for rescale in ("alignment", False):
        optimizer = make_optimizer(
            backend, device, SMALL, drop_prob=0.0, site="update", rescale=rescale
        )
        param = params_of(optimizer)[1]
        keep = torch.arange(70, device=device) % 3 == 0
        optimizer.load_masks({param: keep})
        before = param.detach().clone()
        set_agreeing_grads(params_of(optimizer), 0)
        optimizer.step()
        assert torch.equal(param.detach() != before, keep)
        decayed = before * (1 - 1e-2 * 1e-2)
        runs.append((param.detach() - decayed)[keep])
    torch.testing.assert_close(runs[0], 0.5 * runs[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("moment", ["moment_dots", "step"])
def test_a_step_that_was_not_made_leaves_it(monkeypatch, backend, device, moment):
    """Ctrl-C, and the step again: as if nothing had been."""
    optimizer, judge = (make_optimizer(backend, device, SMALL, **KNOBS) for _ in range(2))
    for each in (optimizer, judge):
        train(each, 2)
    set_grads(params_of(optimizer), 2)
    (executor,) = optimizer._plan_cache.latest.executors.values()

    def fail(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(executor), moment, fail)
        optimizer.step()
    assert_same(snapshot(optimizer), snapshot(judge))
    for each in (optimizer, judge):
        train(each, range(2, 3))
    assert_same(snapshot(optimizer), snapshot(judge))


def test_a_replaced_tensor_is_followed(backend, device):
    """Whoever puts another alignment into the state is heard at the next step."""
    ours, twin = (make_optimizer(backend, device, SMALL, **KNOBS) for _ in range(2))
    for optimizer in (ours, twin):
        train(optimizer, 1)
    for optimizer in (ours, twin):
        state = optimizer.state[params_of(optimizer)[0]]
        if optimizer is ours:
            state["alignment"] = torch.full_like(state["alignment"], 0.6)
        else:
            state["alignment"].fill_(0.6)
        train(optimizer, range(1, 3))
    assert_same(snapshot(ours), snapshot(twin))


def test_no_one_else_has_one():
    """The state of an optimizer that does not ask for it is AdamW's."""
    optimizer = make_optimizer(site="update", rescale=True)
    train(optimizer, 1)
    assert all(
        state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values()
    )


@pytest.mark.parametrize("saved", ["ours", "AdamW"])
def test_a_state_without_begins_at_the_start(tmp_path, saved):
    """What was trained without alignments goes on with them, each from 1/2."""
    if saved == "ours":
        before = make_optimizer(site="update")
    else:
        before = torch.optim.AdamW(make_params(), lr=1e-2)
    train(before, 2)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    state_dict = torch.load(tmp_path / "state.pt", weights_only=True)
    if saved == "ours":
        state_dict["param_groups"][0]["rescale"] = "alignment"
    ours = make_optimizer(**KNOBS)
    ours.load_state_dict(state_dict)
    assert all("alignment" not in state for state in ours.state.values())
    set_grads(params_of(ours), 2)
    dots = [moment_dots(p.grad, ours.state[p]["exp_avg"]) for p in params_of(ours)]
    ours.step()
    for (gg, gm, mm), found in zip(dots, alignments(ours), strict=True):
        cosine = float(gm / (gg * mm).sqrt()) if gg * mm else 0.0
        assert float(found) == pytest.approx(0.45 + 0.1 / (1 + math.exp(-cosine / 2)))


def test_a_state_with_goes_on_from_it(tmp_path, backend, device):
    """A fresh optimizer that loads it is the one that was saved; torch's own loads it, too."""
    one = make_optimizer(backend, device, SMALL, **KNOBS)
    train(one, 2)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    state_dict = torch.load(tmp_path / "state.pt", weights_only=True)
    other = make_optimizer(backend, device, SMALL, **KNOBS)
    for mine, trained in zip(params_of(other), params_of(one), strict=True):
        mine.data.copy_(trained.data)
    other.load_state_dict(state_dict)
    assert_same(snapshot(other), snapshot(one))
    for each in (one, other):
        train(each, range(2, 4))
    assert_same(snapshot(other), snapshot(one))
    torch.optim.AdamW(make_params(SMALL, device=device)).load_state_dict(state_dict)


@pytest.mark.parametrize(
    "alignment, message",
    [
        (torch.zeros(2), "expected alignment as a float32 tensor of one element on cpu, got"),
        (torch.zeros((), dtype=torch.float64), "of one element on cpu, got torch.float64"),
        (0.5, "expected alignment as a tensor, got 0.5"),
    ],
)
def test_a_bad_alignment_is_refused(alignment, message):
    """In the state of a parameter, by the step; nothing has changed."""
    optimizer = make_optimizer(**KNOBS)
    train(optimizer, 1)
    param = params_of(optimizer)[1]
    good = optimizer.state[param]["alignment"]
    before = snapshot(optimizer)
    optimizer.state[param]["alignment"] = alignment
    set_grads(params_of(optimizer), 1)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    optimizer.state[param]["alignment"] = good
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("alignment", [torch.zeros(3), torch.zeros((), device="meta"), "half"])
def test_a_bad_alignment_is_not_loaded(alignment):
    """It has to be one number."""
    optimizer = make_optimizer(**KNOBS)
    train(optimizer, 1)
    before = snapshot(optimizer)
    state_dict = optimizer.state_dict()
    state_dict["state"] = {
        key: {**state, "alignment": alignment} for key, state in state_dict["state"].items()
    }
    with pytest.raises(ValueError, match="expected alignment as one number, got"):
        optimizer.load_state_dict(state_dict)
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("site", ["grad", "freeze"])
def test_other_sites_are_refused(site):
    """They have no dense moments to agree with, or scale what enters them."""
    with pytest.raises(ValueError, match=f'expected site="update", got "{site}"'):
        make_optimizer(site=site, rescale="alignment")


def test_the_function_has_no_state_for_it():
    """And says who has."""
    (param,) = make_params(((3,),))
    tensors = [[torch.zeros(3)] for _ in range(3)]
    with pytest.raises(ValueError, match="use FusedGradDropAdamW"):
        graddrop_adamw_([param.detach()], *tensors, [torch.zeros(())], lr=1.0, draw=0, **KNOBS)


def test_the_device_is_not_waited_for():
    """A step's alignments are found and kept without a number that the host reads."""
    optimizer = make_optimizer(**KNOBS)
    train(optimizer, 1)
    (alignments_of,) = optimizer._plan_cache.latest._alignments.values()

    class Dots:
        @staticmethod
        def moment_dots():
            return torch.ones(len(params_of(optimizer)), 3, device="meta", dtype=torch.float64)

    alignments_of._held = [each.to("meta") for each in alignments_of._held]
    scales = alignments_of.find(Dots, torch.zeros(1, device="meta"))
    alignments_of.keep([param.grad for param in params_of(optimizer)])
    assert scales.is_meta  # which has no number to read
