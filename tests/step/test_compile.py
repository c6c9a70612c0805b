"""Laws of torch.compile: a compiled training step that holds ours is the training step."""

from pathlib import Path

import pytest
import torch
from helpers.small_runs import assert_same, snapshot
from torch import nn

import graddrop
from graddrop import FusedGradDropAdamW, graddrop_adamw_

# torch's compiler itself reads .grad of the loss where backward() has broken the graph; the loss is
# no leaf, and this code cannot avoid it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def make_training():
    """A model, its optimizer, and a function that makes one training step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
    optimizer = FusedGradDropAdamW(model.named_parameters(), lr=1e-2, max_grad_norm=1.0)
    batch = torch.randn(4, 8)

    def step() -> torch.Tensor:
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return optimizer, step


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No test sees what another one compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_training_step_is_the_training_step():
    """The same losses, parameters and masks, to the last bit, in every step."""
    (eager, step), (ours, traced) = make_training(), make_training()
    compiled = torch.compile(traced, backend="eager")
    for _ in range(4):
        assert compiled().item() == step().item()
    assert_same(snapshot(ours), snapshot(eager))
    assert ours.draws == [4]


def test_the_step_stays_out_of_the_graph():
    """One graph, the forward pass; backward() breaks it, and the step adds no piece of its own."""
    _, step = make_training()
    found = torch._dynamo.explain(step)()
    assert found.graph_count == 1
    package = Path(graddrop.__file__).parent  # the checkout may have any name
    files = {Path(f.filename) for reason in found.break_reasons for f in reason.user_stack}
    assert Path(__file__) in files
    assert [file for file in files if package in file.parents] == []


def test_nothing_is_compiled_again_as_training_goes_on():
    """Draws, steps and learning rates change; the compiled code stays."""
    optimizer, step = make_training()
    compiled = torch.compile(step, backend="eager")
    compiled()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lr in (1e-2, 1e-3, 1e-4):
            optimizer.param_groups[0]["lr"] = lr
            compiled()


def make_function():
    """Tensors, and a function of them that makes a whole training step without an optimizer."""
    torch.manual_seed(0)
    params = [torch.randn(8, 6), torch.randn(6)]
    zeros = [[torch.zeros_like(param) for param in params] for _ in range(2)]
    steps = [torch.zeros(()) for _ in params]
    batch = torch.randn(4, 8)

    def loss_of(params: list[torch.Tensor]) -> torch.Tensor:
        return (batch @ params[0] + params[1]).square().mean()

    def step(lr: torch.Tensor, draw: int, **knobs: object) -> torch.Tensor:
        grads, loss = torch.func.grad_and_value(loss_of)(params)
        graddrop_adamw_(params, grads, *zeros, steps, lr=lr, draw=draw, **knobs)
        return loss

    return [*params, *zeros[0], *zeros[1], *steps], step


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_graph_may_hold_the_function(compiler):
    """A whole training step in one graph: the same bits; new draws and lr compile nothing new."""
    (expected, step), (tensors, traced) = make_function(), make_function()
    compiled = torch.compile(traced, backend=compiler, fullgraph=True)
    knobs = {"granularity": "layer", "layers": [3, None], "seed": (1 << 64) - 1, "rescale": True}
    knobs["keep_masks"] = [None, torch.arange(6) % 2 == 0]
    for draw in range(6):
        lr = torch.tensor(1e-2 / (draw + 1))
        with torch._dynamo.config.patch(error_on_recompile=draw > 1):  # 1: draw becomes a variable
            assert compiled(lr, draw, **knobs).item() == step(lr, draw, **knobs).item()
    assert_same(tensors, expected)
    assert expected[-1] == 6


@pytest.mark.parametrize("keep_mask", [None, torch.arange(35).view(5, 7) % 3 == 0])
def test_the_operator_is_what_torch_takes_it_for(keep_mask):
    """It writes what it declares and nothing else; it may be traced, with fake tensors too."""
    param = torch.randn(5, 7)
    arguments = {
        "params": [param],
        "grads": [torch.randn(5, 7)],
        "exp_avgs": [torch.zeros(5, 7)],
        "exp_avg_sqs": [torch.zeros(5, 7)],
        "state_steps": [torch.zeros(())],
        "lr": torch.tensor(0.1),
        "drop_prob": torch.tensor(0.5),
        "grad_scale": None,
        "found_inf": None,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "maximize": False,
        "granularity": "element",
        "select": "bernoulli",
        "site": "grad",
        "rescale": False,
        "mask_decay": True,
        "stochastic_rounding": False,
        "seed": -1,
        "draw": 0,
        "stream_ids": [0],
        "layers": [-1],
        "keep_masks": [keep_mask],
        "places": [5, 7, 0, 0],
        "backend": "auto",
    }
    results = torch.library.opcheck(torch.ops.graddrop.adamw_, (), arguments)
    assert set(results.values()) == {"SUCCESS"}
