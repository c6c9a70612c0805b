"""Laws of parameters on several devices: each steps where it lies, all of them as one optimizer."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from helpers.small_runs import make_params, params_of, set_grads

from graddrop import FusedGradDropAdamW
from graddrop.step.backends import make_executor
from graddrop.step.checks import check_capture
from graddrop.testing import make_knobs, random_slot

SHAPES = ((70,), (33, 8), (2500,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_two_devices_train_as_each_alone(other, backend):
    """The same bits: masks go by a parameter's place in the optimizer, not by its device."""
    if other == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    knobs = {"lr": 1e-2, "drop_prob": 0.5, "seed": 3, "granularity": "row", "backend": backend}
    devices = ["cuda:0", other]
    together, alone = ([make_params(SHAPES, device=d) for d in devices] for _ in range(2))
    both = FusedGradDropAdamW([{"params": params} for params in together], **knobs)
    ids = [list(range(3)), list(range(3, 6))]
    each = [
        FusedGradDropAdamW([{"params": params, "stream_ids": own}], **knobs)
        for params, own in zip(alone, ids, strict=True)
    ]
    for step in range(3):
        set_grads(params_of(both), step)
        for one, group in zip(each, both.param_groups, strict=True):
            for param, like in zip(params_of(one), group["params"], strict=True):
                param.grad = like.grad.clone()
            one.step()
        both.step()
    for one, group in zip(each, both.param_groups, strict=True):
        for param, like in zip(params_of(one), group["params"], strict=True):
            assert param.device == like.device and torch.equal(param, like)
            assert torch.equal(one.state[param]["exp_avg"], both.state[like]["exp_avg"])


def group_on(*devices):
    """A param group as the check of captures sees it."""
    params = [SimpleNamespace(device=torch.device(device)) for device in devices]
    numbers = {"lr": 1e-3, "drop_prob": 0.5, "betas": (0.9, 0.999)}
    return {"params": params, "capturable": True, **numbers}


@pytest.mark.parametrize(
    "groups, is_captured_whole",
    [
        ([("cuda:1",), ("cuda:1", "cuda:1")], True),
        ([("cuda:1",), ("cpu",)], False),
        ([("cuda:1", "cuda:0")], False),
        ([("cuda:0",), ("cuda:0",)], False),
    ],
)
def test_a_graph_holds_the_step_of_its_own_device(groups, is_captured_whole, monkeypatch):
    """What another device's stream does is done once and never replayed, so it is refused."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    groups = [group_on(*devices) for devices in groups]
    if is_captured_whole:
        check_capture(groups, scheduled=False)
        return
    with pytest.raises(RuntimeError, match="an optimizer per device"):
        check_capture(groups, scheduled=False)


@pytest.fixture
def launcher():
    """The Triton launcher of contiguous and strided tensors, with alignments and without."""
    pytest.importorskip("triton", reason="Triton is not installed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    knobs = [make_knobs(), make_knobs(site="update", rescale="alignment")]
    slots = [
        random_slot(shape, seed=0, device=device, group=group)
        for group in range(2)
        for shape in ((1500,), (30, 30))
    ]
    for slot in slots:
        slot.param.t_()
    return make_executor("triton", slots, knobs, device)._launcher


def test_the_current_device_is_that_of_the_tensors(launcher, monkeypatch):
    """Triton launches on the current one, so it is changed where another is."""
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or no_op())
    for device, changes in (("cuda:0", []), ("cuda:1", ["cuda:1"]), ("cpu", [])):
        monkeypatch.setattr(launcher, "_device", torch.device(device))
        entered.clear()
        with launcher._on_device():
            pass
        assert list(map(str, entered)) == changes


def test_every_launch_is_on_the_device_of_the_tensors(launcher, monkeypatch):
    """Those of a step, of what comes before it, of alignments and of a norm."""
    from graddrop.kernels.gpu import launch

    inside, launched = [], set()

    @contextmanager
    def on_device():
        inside.append(True)
        yield
        inside.pop()

    class Kernel:
        """Writes down that it was launched, and where."""

        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            assert inside, f"{self.name} is launched on the device that happens to be current"
            return lambda *arguments, **options: launched.add(self.name)

    kernels = [name for name, value in vars(launch).items() if hasattr(value, "arg_names")]
    for name in kernels:
        monkeypatch.setattr(launch, name, Kernel(name))
    monkeypatch.setattr(launcher, "_on_device", on_device)
    launcher.prepare(torch.zeros(2, dtype=torch.int64), None, None)
    launcher.moment_dots()
    launcher.grad_squares(masked=True, grad_scale=None)
    launcher.step()
    assert launched == set(kernels) and len(kernels) >= 8


@contextmanager
def no_op():
    """Changes nothing."""
    yield
