"""Runs that are looked at between the backward pass and the update of each step."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class Recorder(TrainerCallback):
    """Keeps what a function sees at each step, between backward pass and update."""

    def __init__(self, look: Callable[[Any, Any], Any]) -> None:
        self.look = look
        self.seen: list[Any] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look."""
        self.seen.append(self.look(kwargs["model"], kwargs["optimizer"].optimizer))


def with_gradient(model: Any, optimizer: Any) -> set[str]:
    """Names of the parameters that got a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}
