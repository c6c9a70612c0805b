"""Lightning: the optimizer clips, an epoch begins its mask, the log says what is kept.

python examples/lightning_module.py    (pip install lightning)
"""

import lightning
import torch
from torch import Tensor, nn

from graddrop import FusedGradDropAdamW


class Module(lightning.LightningModule):
    """A small network and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 2))
        self.losses: list[float] = []

    def configure_optimizers(self) -> FusedGradDropAdamW:
        """Masks that live for an epoch; the bound of the norm is the optimizer's, not Lightning's.

        Lightning would clip before the step, by gradients that still carry their loss scale.
        """
        return FusedGradDropAdamW(
            self.named_parameters(), lr=1e-2, drop_prob=0.5, period="epoch", max_grad_norm=1.0
        )

    def on_train_epoch_start(self) -> None:
        """Name the epoch, so that a run resumed in its middle goes on with its own mask."""
        self.masked.new_mask(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("kept_fraction", self.masked.log_values()["kept_fraction"])
        self.losses.append(loss.item())
        return loss

    @property
    def masked(self) -> FusedGradDropAdamW:
        """The optimizer within Lightning's wrapper."""
        return self.optimizers().optimizer


def main(folder: str | None = None) -> Module:
    """Train on points in two classes.

    Args:
        folder: for whatever Lightning writes; None: where the program runs.
    """
    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=32))
    print(f"loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
    return module


if __name__ == "__main__":
    main()
