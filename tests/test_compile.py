"""Laws of torch.compile: a compiled training step that holds ours is the training step."""

import pytest
import torch
from small_runs import assert_same, snapshot
from torch import nn

from graddrop import FusedGradDropAdamW

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
    assert not any("graddrop" in str(reason.user_stack) for reason in found.break_reasons)


def test_nothing_is_compiled_again_as_training_goes_on():
    """Draws, steps and learning rates change; the compiled code stays."""
    optimizer, step = make_training()
    compiled = torch.compile(step, backend="eager")
    compiled()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lr in (1e-2, 1e-3, 1e-4):
            optimizer.param_groups[0]["lr"] = lr
            compiled()
