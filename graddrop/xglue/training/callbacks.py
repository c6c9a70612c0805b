"""Trainer callbacks that the run folder and the order of the data need."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from graddrop.xglue.training.order import LengthSampler


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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask, if it is time and no epoch ends here whose own checkpoint follows.

        That one comes after the epoch's evaluation; a run that went on from one before it would
        never evaluate the epoch.
        """
        # At the end of an epoch the Trainer adds n / n, which is 1 exactly.
        epoch_ends = control.should_training_stop or float(state.epoch or 0).is_integer()
        follows = args.save_strategy == SaveStrategy.EPOCH and epoch_ends
        if self.steps is not None and state.global_step % self.steps == 0 and not follows:
            control.should_save = True
        control.should_log |= control.should_save

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the loss, if a checkpoint is due."""
        control.should_log |= control.should_save


class NewOrderEachEpoch(TrainerCallback):
    """Tell the training set's order which epoch begins.

    accelerate does so, too, but not where several processes resume in the middle of an epoch.

    Args:
        sampler: Gives the order.
    """

    def __init__(self, sampler: LengthSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the epoch, so that one resumed in its middle goes on with its own order."""
        self.sampler.set_epoch(int(state.epoch or 0))
