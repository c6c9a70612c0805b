"""A whole training step as one CUDA graph, which draws a new mask at each replay.

python examples/cuda_graph.py    (needs a GPU and Triton)
"""

import sys

import torch

from graddrop import FusedGradDropAdamW


def main() -> list[float]:
    """Capture a training step and replay it; return the losses."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 2)
    ).cuda()
    optimizer = FusedGradDropAdamW(model.named_parameters(), lr=1e-2, capturable=True)
    inputs = torch.randn(256, 16, device="cuda")
    labels = (inputs[:, 0] > 0).long()

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    # Some steps before the capture make the state and compile the kernels.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(50):
        graph.replay()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, next masks {optimizer.draws}")
    return losses


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("this example needs a GPU")
    main()
