"""Laws of torch's default device, which models are made on: nothing of an optimizer follows it."""

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
)

from graddrop import FusedGradDropAdamW, graddrop_adamw_

KNOBS = {
    "clipped": {"max_grad_norm": 1.0},
    "clipped by the masked norm": {"max_grad_norm": 1.0, "masked_norm": True},
    "layers": {"granularity": "layer", "layers": [0, 1]},
}


def run(backend, device, default, knobs):
    """Three steps with a checkpoint between them, all calls of ours under a default device."""
    knobs = dict(knobs)
    layers = {"layers": knobs.pop("layers")} if "layers" in knobs else {}
    params = make_params(SMALL, device=device)

    def make(params):
        groups = [{"params": params, **layers}]
        return FusedGradDropAdamW(groups, lr=1e-2, seed=3, backend=backend, **knobs)

    with torch.device(default):
        optimizer = make(params)
    found = []
    for step in range(3):
        set_grads(params, step)
        with torch.device(default):
            optimizer.step()
            found += [optimizer.keep_mask(param) for param in params]
            found.append(torch.tensor(len(optimizer.dropped_params()), device="cpu"))
            if step == 1:
                state = optimizer.state_dict()
                optimizer = make(params)
                optimizer.load_state_dict(state)
    return [*snapshot(optimizer), *found]


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_an_optimizer_keeps_to_its_parameters(backend, device, knobs):
    """On "meta", where whatever is made without naming a device has no data."""
    assert_same(run(backend, device, "meta", knobs), run(backend, device, "cpu", knobs))


@pytest.mark.gpu
def test_the_function_keeps_to_its_tensors(backend, device):
    """Its learning rate is a number, which becomes a tensor on the way."""
    results = []
    for default in ("meta", "cpu"):
        optimizer = make_optimizer("reference", device, SMALL)
        set_grads(params_of(optimizer), 0)
        optimizer.step()
        params = params_of(optimizer)
        states = [optimizer.state[param] for param in params]
        steps = [state["step"].to(device) for state in states]
        with torch.device(default), torch.no_grad():
            graddrop_adamw_(
                params,
                [param.grad for param in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                steps,
                lr=1e-2,
                drop_prob=0.5,
                draw=1,
                backend=backend,
            )
        results.append(snapshot(optimizer))
    assert_same(*results)
