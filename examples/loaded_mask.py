"""Fine-tuning a twentieth of a network: the entries that matter most for the new task.

python examples/loaded_mask.py
"""

import torch
from torch import Tensor, nn

from graddrop import FusedGradDropAdamW
from graddrop.mask_makers import fisher_scores, top_masks
from graddrop.methods import PRESETS


def make_batches(task: int, n: int) -> list[tuple[Tensor, Tensor]]:
    """Points in two classes: by the sign of a product of two coordinates, others in each task."""
    generator = torch.Generator().manual_seed(task)
    inputs = torch.randn(n, 64, 16, generator=generator)
    return list(zip(inputs, (inputs[..., task] * inputs[..., task + 1] > 0).long(), strict=True))


def main() -> dict[str, float]:
    """Train on one task, then a part on another; return what is said."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
    model.append(nn.Linear(64, 2))

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def train(optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
        for batch in batches:
            optimizer.zero_grad()
            loss_of(batch).backward()
            optimizer.step()

    train(torch.optim.AdamW(model.parameters(), lr=3e-3), make_batches(task=0, n=400))
    start = {name: param.detach().clone() for name, param in model.named_parameters()}

    batches, unseen = make_batches(task=4, n=600), make_batches(task=4, n=620)[600:]
    before = sum(loss_of(batch).item() for batch in unseen) / len(unseen)
    examples = [(x[i : i + 1], y[i : i + 1]) for x, y in batches[:4] for i in range(len(y))]
    scores = fisher_scores(dict(model.named_parameters()), map(loss_of, examples))
    knobs = PRESETS["fish-mask"].knobs
    optimizer = FusedGradDropAdamW(model.named_parameters(), lr=3e-3, drop_prob=0.0, **knobs)
    optimizer.load_masks(top_masks(scores, density=0.05))
    train(optimizer, batches)

    after = sum(loss_of(batch).item() for batch in unseen) / len(unseen)
    n_moved = sum(int((p != start[name]).sum()) for name, p in model.named_parameters())
    moved = n_moved / sum(p.numel() for p in model.parameters())
    kept = optimizer.log_values(wait=True)["kept_fraction"]
    print(f"{moved:.1%} of the entries moved, {kept:.1%} were kept by the mask")
    print(f"loss on unseen points of the new task: {before:.3f} before, {after:.3f} after")
    return {"moved": moved, "kept": kept, "before": before, "after": after}


if __name__ == "__main__":
    main()
