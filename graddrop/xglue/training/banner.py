"""What a run is about to do, in a line or two."""

from graddrop.xglue.config import TINY, FinetuneConfig
from graddrop.xglue.training.steps import Steps


def banner(config: FinetuneConfig, steps: Steps, device: str) -> str:
    """Return what is said before the first step.

    Args:
        config: The run, with its recipe filled in.
        steps: How many there will be.
        device: Where they are made, such as `cuda`.
    """
    rates = " ".join(f"{value:g}" for value in config.drop_probs) or "0"
    devices = f"{config.processes} x {device}" if (config.processes or 1) > 1 else device
    text = (
        f"{config.task}: model {config.model}, method {config.method}, p {rates}, "
        f"lr {config.lr:g}, {steps.total:,} steps on {devices}, output {config.output}"
    )
    if config.model == TINY:
        text += "\nThe model is tiny, its weights are random: its scores mean nothing."
    return text
