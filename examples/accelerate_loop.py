"""A loop with accelerate: accumulated batches, and no backward pass for layers that are dropped.

python examples/accelerate_loop.py    (accelerate launch, on several devices)
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from graddrop import FusedGradDropAdamW


class Network(nn.Module):
    """Four residual layers, which their names tell, and a head, which is in none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of two classes, [batch, 2], of vectors, [batch, 16]."""
        for layer in self.layers:
            inputs = inputs + layer(inputs).tanh()
        return self.head(inputs)


def main() -> list[float]:
    """Train a small network; return its losses."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=not torch.cuda.is_available())
    network = Network()
    optimizer = FusedGradDropAdamW(
        network.named_parameters(),
        lr=1e-2,
        drop_prob=0.5,
        granularity="layer",
        max_grad_norm=1.0,  # in place of accelerator.clip_grad_norm_
        masked_norm=True,
    )
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    model, prepared, loader = accelerator.prepare(network, optimizer, loader)
    losses = []
    for _ in range(4):
        for batch, labels in loader:
            with accelerator.accumulate(model):
                # What is ours alone is asked of the optimizer itself; `prepared` is a wrapper.
                with optimizer.skip_dropped():
                    loss = nn.functional.cross_entropy(model(batch), labels)
                    accelerator.backward(loss)
                prepared.step()
                prepared.zero_grad()
            losses.append(loss.item())
    kept = optimizer.log_values(wait=True)["kept_fraction"]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, the next step keeps {kept:.0%}")
    return losses


if __name__ == "__main__":
    main()
