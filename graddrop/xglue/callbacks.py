"""Trainer callbacks that the methods and the run folder need."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Checkpoints(TrainerCallback):
    """Ask for checkpoints beside those that follow an evaluation, and for the loss before each.

    The Trainer averages the loss since the last entry of its log and does not save that sum. With
    an entry before every checkpoint a resumed run writes the same learning curve.

    Args:
        steps: Optimizer steps between two checkpoints; None asks for no further ones.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask, if it is time."""
        if self.steps is not None and state.global_step % self.steps == 0:
            control.should_save = True
        control.should_log |= control.should_save

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask for the loss, if a checkpoint is due."""
        control.should_log |= control.should_save
