"""Laws of ``FusedGradDropAdamW`` among schedulers, hooks, copiers and trainers."""

import copy
import pickle
import warnings

import pytest
import torch
from helpers.small_runs import (
    SMALL,
    assert_same,
    make_optimizer,
    make_params,
    params_of,
    set_grads,
    snapshot,
    train,
)
from torch.optim import lr_scheduler

from graddrop import FusedGradDropAdamW, schedules

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.5**n),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=True),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, 6, cycle_momentum=True),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o, 0.1, 2)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


def test_every_kind_of_scheduler_is_in_the_table():
    """A scheduler that torch gains shows up here."""
    kinds = {
        name
        for name in lr_scheduler.__all__
        if name not in ("LRScheduler", "SequentialLR", "ChainedScheduler")
    }
    assert kinds <= SCHEDULERS.keys()


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_drive_it_as_they_drive_adamw(kind, tensor_lr):
    """Each kind of LR scheduler: the same learning rates, betas and steps as AdamW's."""
    runs = []
    for make in (
        lambda params, lr: FusedGradDropAdamW(params, lr=lr, drop_prob=0.0, backend="reference"),
        lambda params, lr: torch.optim.AdamW(params, lr=lr, foreach=False),
    ):
        lr = torch.tensor(1e-2, dtype=torch.float64) if tensor_lr else 1e-2
        optimizer = make(make_params(((5, 7), (3,))), lr)
        scheduler = SCHEDULERS[kind](optimizer)
        history = []
        for step in range(5):
            train(optimizer, range(step, step + 1))
            scheduler.step(*([float(step)] if kind == "ReduceLROnPlateau" else []))
            history.append(
                (float(optimizer.param_groups[0]["lr"]), optimizer.param_groups[0]["betas"])
            )
        runs.append((history, snapshot(optimizer)))
    (our_history, ours), (their_history, theirs) = runs
    assert our_history == their_history
    assert len(set(our_history)) > 1  # control: the scheduler did something
    assert_same(ours, theirs)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_trains_on_alike_and_apart(backend, device, copier):
    """A deep copy or a pickled one makes the same steps, schedules included, and shares nothing."""
    optimizer = make_optimizer(
        backend, device, shapes=SMALL, drop_prob=schedules.Linear(0.1, 0.9, 4)
    )
    train(optimizer, 2)
    before = snapshot(optimizer)
    twin = copier(optimizer)
    train(twin, range(2, 4))
    assert_same(snapshot(optimizer), before)
    train(optimizer, range(2, 4))
    assert_same(snapshot(twin), snapshot(optimizer))
    assert twin.param_groups[0]["drop_prob"] == 0.1 + 0.8 * 0.75
    assert optimizer.param_groups[0]["drop_prob"] == 0.1 + 0.8 * 0.75


def test_hooks_run_around_the_step():
    """Step hooks run before and after, and what the first one changes counts."""
    calls = []
    optimizer, plain = make_optimizer(), make_optimizer()

    def halve(opt, args, kwargs):
        calls.append("pre")
        for param in params_of(opt):
            param.grad.mul_(0.5)

    optimizer.register_step_pre_hook(halve)
    optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("post"))
    train(optimizer, 2)
    for step in range(2):
        set_grads(params_of(plain), step)
        for param in params_of(plain):
            param.grad.mul_(0.5)
        plain.step()
    assert calls == ["pre", "post"] * 2
    assert_same(snapshot(optimizer), snapshot(plain))


@pytest.fixture
def cpu_kernel():
    """The compiled kernel, which a copy of the sources alone does not have."""
    from graddrop.kernels.cpu import binding

    if not binding.LIBRARY.exists():
        pytest.skip(f"{binding.LIBRARY} is not built")


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.float32, "cpu"),
        (torch.bfloat16, "cpu"),
        (torch.float16, "reference"),
        (torch.float64, "reference"),
    ],
)
def test_auto_chooses_and_says_nothing(dtype, expected, cpu_kernel):
    """On the CPU: the compiled kernel where it has code, else the reference, without a word."""
    automatic = make_optimizer("auto", dtype=dtype)
    named = make_optimizer(expected, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(automatic, 2)
    train(named, 2)
    assert [key[1] for key in automatic._plan_cache.latest.executors] == [expected]
    assert_same(snapshot(automatic), snapshot(named))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_chooses_triton_on_a_gpu(cpu_kernel):
    """GPU tensors go to Triton, CPU tensors in the same optimizer to the CPU kernel."""
    params = [*make_params(((70,),), device="cuda"), *make_params(((70,),))]
    optimizer = FusedGradDropAdamW(params)
    train(optimizer, 1)
    assert {key[1] for key in optimizer._plan_cache.latest.executors} == {"triton", "cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("first", ["cuda", "cpu"])
def test_one_norm_bounds_gradients_on_all_devices(first, cpu_kernel):
    """The device's sum meets the host's, whichever comes first, before either is used."""
    devices = (first, "cpu" if first == "cuda" else "cuda")
    params = [make_params(((70_001,),), device=device)[0] for device in devices]
    ours = FusedGradDropAdamW(params, max_grad_norm=1.0, seed=3)
    plain = FusedGradDropAdamW(
        [*make_params(((70_001,),)), *make_params(((70_001,),))], max_grad_norm=1.0, seed=3
    )
    for step in range(5):
        train(ours, range(step, step + 1))
        train(plain, range(step, step + 1))
        assert float(ours.grad_norm) == pytest.approx(float(plain.grad_norm), rel=1e-5)
    for mine, theirs in zip(params, params_of(plain), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)


def trainer_arguments(folder, **options):
    """Arguments of a Trainer that is short, quiet and alone."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        **options,
    )


class Regression(torch.nn.Module):
    """A line, in the form that a Trainer trains."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 1)

    def forward(self, x, labels):
        """The loss, and the prediction."""
        predicted = self.line(x)
        return {"loss": (predicted.squeeze(-1) - labels).square().mean(), "logits": predicted}


def test_a_trainer_trains_with_it(tmp_path):
    """``optimizer_cls_and_kwargs``: the Trainer's groups, scheduler and clipping, our steps."""
    arguments = trainer_arguments(tmp_path, weight_decay=0.1, learning_rate=1e-2)
    from transformers import Trainer

    model = Regression()
    before = model.line.weight.detach().clone()
    data = [{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(8)]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=(
            FusedGradDropAdamW,
            {"lr": 1e-2, "site": "freeze", "drop_prob": 0.9, "period": 8},
        ),
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer  # inside accelerate's wrapper
    assert isinstance(optimizer, FusedGradDropAdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["steps_finished"] == 4
    keep = optimizer.keep_mask(model.line.weight)  # one mask for all four steps
    assert torch.equal(model.line.weight.detach() != before, keep)
    assert not keep.all()
