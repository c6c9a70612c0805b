"""A training loop of plain PyTorch, and what its masks do.

python examples/plain_loop.py
"""

import torch

from graddrop import FusedGradDropAdamW


def main() -> list[float]:
    """Train a small network on points in two classes; return its losses."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 2))
    optimizer = FusedGradDropAdamW(
        model.named_parameters(),
        lr=1e-2,
        drop_prob=0.5,
        seed=0,  # of the masks; torch's is not read
        max_grad_norm=1.0,  # applied within the step
    )
    inputs = torch.randn(256, 16)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 19:
            values = optimizer.log_values(wait=True)
            print(
                f"step {step + 1}: loss {losses[-1]:.3f}, gradient norm {values['grad_norm']:.3f}, "
                f"{values['kept_fraction']:.0%} of the entries kept"
            )
    return losses


if __name__ == "__main__":
    main()
