"""transformers' Trainer and the optimizer's masks, brought together."""

from typing import Any

from .optimizer import FusedGradDropAdamW


class SkipDroppedMixin:
    """Lets a Trainer leave out the backward pass of what the next step drops as a whole.

    ::

        class LayerTrainer(SkipDroppedMixin, Trainer):
            pass

    Each ``training_step`` is a block of :meth:`FusedGradDropAdamW.skip_dropped`, whose conditions
    hold: the training is the same, bit for bit, and the Trainer must not clip by a norm of its own,
    which would miss what is skipped. Several processes need
    ``TrainingArguments(ddp_find_unused_parameters=True)``.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's.

        Raises:
            TypeError: another optimizer than :class:`FusedGradDropAdamW`.
            ValueError: the Trainer clips gradients; as ``skip_dropped``.
            RuntimeError: as ``skip_dropped``.
        """
        trainer: Any = self
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's
        if not isinstance(optimizer, FusedGradDropAdamW):
            raise TypeError(
                f"SkipDroppedMixin expects a FusedGradDropAdamW, got {type(optimizer)}: pass "
                "optimizer_cls_and_kwargs=(FusedGradDropAdamW, {...}) to the Trainer"
            )
        if trainer.args.max_grad_norm:
            raise ValueError(
                "SkipDroppedMixin expects TrainingArguments(max_grad_norm=0), got "
                f"{trainer.args.max_grad_norm}: the norm would miss what is skipped; give the "
                "optimizer max_grad_norm with masked_norm=True"
            )
        parent: Any = super()
        with optimizer.skip_dropped():
            return parent.training_step(*args, **kwargs)
