"""What is compiled while training runs: nothing after the first steps, whatever changes."""

import torch
from ptx.launches import executed

from graddrop import FusedGradDropAdamW

WARM_UP, STEPS, PATTERNS = 40, 1000, 10


def a_grad(param, number, pattern):
    """A gradient at a new address: missing, off a boundary of 16 bytes, or plain, by pattern."""
    if (number + pattern) % 5 == 0:
        return None
    off = (number * 7 + pattern) % 3 == 0
    room = torch.ones(param.numel() + 1, dtype=param.dtype)
    return room[int(off) :][: param.numel()].view(param.shape)


def test_nothing_is_compiled_after_warm_up():
    """A thousand steps: gradients come, go and move, knobs, scales and the norm's bound change."""
    shapes = [(700,), (40, 12), (20_000,), (33,), (50_000,), (30, 45)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    params += [torch.nn.Parameter(torch.randn(900, dtype=torch.bfloat16)) for _ in range(2)]
    params[5].data = params[5].data.t().contiguous().t()
    groups = [
        {"params": params[:2], "granularity": "row"},
        {"params": params[2:4]},
        {"params": params[4:6], "site": "update", "rescale": "alignment"},
        {"params": params[6:], "granularity": "tensor", "site": "freeze"},
    ]
    optimizer = FusedGradDropAdamW(groups, backend="triton", max_grad_norm=1.0, masked_norm=True)
    scales = torch.ones(3)
    counts = []
    with executed(runs=False) as execution:
        for step in range(STEPS):
            pattern = step % PATTERNS
            for number, param in enumerate(params):
                param.grad = a_grad(param, number, pattern)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (1 + step)
                group["drop_prob"] = 0.1 + step / 2000
                group["weight_decay"] = step * 1e-5
                group["betas"] = (0.9, 0.99 + step * 1e-6)
            optimizer.max_grad_norm = 1.0 + step
            optimizer.grad_scale = scales[step % 3]
            optimizer.found_inf = scales[(step + 1) % 3]
            optimizer.step()
            counts.append(len(execution.variants))
    print(f"variants after each of the first steps: {counts[:WARM_UP]}")
    assert counts[WARM_UP] == counts[-1] > len({kernel for kernel, _ in execution.variants})
    assert counts[0] < counts[-1]  # control: what gradients' places change is seen
    # A pointer that is here a multiple of 16 and there is not makes no variant of its own.
    alike = {(kernel, key.replace("'D'", "''")) for kernel, key in execution.variants}
    assert len(alike) == len(execution.variants), sorted(execution.variants)
