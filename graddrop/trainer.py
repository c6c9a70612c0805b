"""All that transformers' Trainer knows, handed to the optimizer in one call.

::

    trainer = Trainer(
        model=model, args=args, train_dataset=data,
        **graddrop.trainer_kwargs(model, args, drop_prob=0.5, exempt=["head"]),
    )
"""

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .categories import by_category
from .exemptions import exempt_names
from .mask import layer_of
from .optimizer import FusedGradDropAdamW

# Arguments of the optimizer that the Trainer's own say, and by what name.
_SAID_BY_ARGS = {
    "lr": "learning_rate",
    "betas": "adam_beta1, adam_beta2",
    "eps": "adam_epsilon",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
}


def trainer_kwargs(
    model: nn.Module,
    args: TrainingArguments,
    *,
    exempt: Collection[str] = (),
    categories: bool = False,
    **knobs: Any,
) -> dict[str, Any]:
    """Keyword arguments of ``Trainer`` that let it train with ``FusedGradDropAdamW``.

    Learning rate, betas, eps and weight decay are the Trainer's, in its own groups of parameters
    with decay and without; parameters are known by name, so that layers are. Gradients are clipped
    at ``args.max_grad_norm`` within the step. Masks are seeded with ``args.seed``.

    Args:
        model: what will be trained; looked at now to find mistakes early, and sorted into groups
            when the Trainer makes the optimizer.
        args: of the Trainer, which refuses to be made, or to train, with other values than these of
            what the optimizer takes from them.
        exempt: kinds of parameters that are never masked, among
            ``graddrop.exemptions.EXEMPTIONS``.
        categories: drop each category's share by itself (:func:`graddrop.categories.by_category`).
        **knobs: the other arguments of ``FusedGradDropAdamW``.

    Returns:
        ``optimizer_cls_and_kwargs`` and ``callbacks``; add callbacks of your own to that list.

    Raises:
        ValueError: an unknown kind of exemption, a head that no rule tells
            (:func:`graddrop.exemptions.set_head`), a knob outside its range, or no layer to drop.
        TypeError: a knob that the Trainer's arguments say, or of the wrong type, ``exempt`` among
            them, which is a list.
    """
    for name in _SAID_BY_ARGS.keys() & knobs.keys():
        raise TypeError(
            f"trainer_kwargs() got {name}={knobs[name]!r}: set {_SAID_BY_ARGS[name]} in the "
            "Trainer's arguments"
        )
    if str(getattr(args.optim, "value", args.optim)) not in ("adamw_torch", "adamw_torch_fused"):
        warnings.warn(
            f"optim={args.optim!r} of the Trainer's arguments is ignored: FusedGradDropAdamW takes "
            "its place",
            stacklevel=2,
        )
    if args.optim_args:
        warnings.warn(
            f"optim_args={args.optim_args!r} of the Trainer's arguments are ignored: pass knobs to "
            "trainer_kwargs",
            stacklevel=2,
        )
    arguments = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "seed": args.seed,
        # 0 is the Trainer's word for no bound; the norm is measured all the same.
        "max_grad_norm": args.max_grad_norm or math.inf,
        **knobs,
    }
    factory_kwargs = {
        "weight_decay": args.weight_decay,
        "exempt": exempt,
        "categories": categories,
        **arguments,
    }
    OptimizerFactory()(model, **factory_kwargs)
    taken = ", ".join([*_SAID_BY_ARGS.values(), *({"seed"} - knobs.keys())]).split(", ")
    same = SameArguments({name: getattr(args, name) for name in taken})
    callbacks: list[TrainerCallback] = [same, ClipInStep(), LogMasks()]
    if knobs.get("period") == "epoch":
        callbacks.append(NewMaskEachEpoch())
    return {
        "optimizer_cls_and_kwargs": (OptimizerFactory, factory_kwargs),
        "callbacks": callbacks,
    }


class OptimizerFactory:
    """Makes the optimizer when the Trainer has the model that it will train, wrapped or sharded."""

    def __call__(
        self,
        model: nn.Module,
        *,
        weight_decay: float,
        exempt: Collection[str],
        categories: bool = False,
        **arguments: Any,
    ) -> FusedGradDropAdamW:
        """The optimizer of a model's parameters that need a gradient.

        Args:
            model: what is trained.
            weight_decay: of the parameters that the Trainer's rule gives a decay.
            exempt: kinds of parameters that are never masked.
            categories: whether each category of a layer's parameters drops its own share.
            **arguments: of ``FusedGradDropAdamW``.

        Raises:
            ValueError: no layer, where these are what is dropped; as
                :func:`graddrop.exemptions.exempt_names` and ``FusedGradDropAdamW``.
            TypeError: as these two.
        """
        # The rule reads nothing of the Trainer itself.
        decaying = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
        unmasked = exempt_names(model, exempt)
        by_kind: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, param in model.named_parameters():
            if param.requires_grad:
                kind = name in unmasked, name not in decaying
                by_kind.setdefault(kind, []).append((name, param))
        if arguments.get("granularity") == "layer" and all(
            layer_of(name) is None for params in by_kind.values() for name, _ in params
        ):
            raise ValueError(
                'granularity="layer" drops nothing here: no parameter of '
                f"{type(model).__name__} is in a layer by its name"
            )
        groups = [
            {
                "params": by_kind[is_exempt, plain],
                "weight_decay": 0.0 if plain else weight_decay,
                **({"drop_prob": 0.0} if is_exempt else {}),
            }
            for is_exempt, plain in sorted(by_kind)
        ]
        if categories:
            groups = by_category(model, groups, seed=arguments["seed"])
        return FusedGradDropAdamW(groups, **arguments)


def _own(optimizer: Any) -> FusedGradDropAdamW:
    """The optimizer in accelerate's wrapper, which the Trainer hands out."""
    own = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(own, FusedGradDropAdamW):
        raise TypeError(
            f"expected FusedGradDropAdamW as the Trainer's optimizer, got {type(own).__name__}: "
            "pass what graddrop.trainer_kwargs returns"
        )
    return own


class NewMaskEachEpoch(TrainerCallback):
    """Begin the mask of an epoch, for optimizers with ``period="epoch"``."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the epoch, so that one resumed in its middle goes on with its own mask."""
        _own(kwargs["optimizer"]).new_mask(int(state.epoch or 0))


class SameArguments(TrainerCallback):
    """Refuse a Trainer whose arguments are not those that its optimizer is made of.

    Args:
        taken: what was taken from them, by name.
    """

    def __init__(self, taken: Mapping[str, Any]) -> None:
        self._taken = taken

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at those that the Trainer was given."""
        self._check(args, self._taken)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look again: a search of hyperparameters, for one, sets them in between."""
        # An aborted training has left the bound at 0, see ClipInStep.
        self._check(
            args, self._taken.keys() - ({"max_grad_norm"} if not args.max_grad_norm else ())
        )

    def _check(self, args: TrainingArguments, names: Collection[str]) -> None:
        for name in sorted(names):
            value, found = self._taken[name], getattr(args, name)
            if found != value:
                raise ValueError(
                    f"expected the Trainer's arguments to be those of trainer_kwargs, got "
                    f"{name}={found!r} where the optimizer has {value!r}: make both of the same "
                    "arguments, which stay as they are"
                )


class ClipInStep(TrainerCallback):
    """Leave the clipping to the optimizer, which has the bound, while the Trainer trains."""

    def __init__(self) -> None:
        self._bound = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bound from the Trainer."""
        self._bound = args.max_grad_norm or self._bound  # once: an aborted training left 0
        args.max_grad_norm = 0.0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put it back."""
        args.max_grad_norm = self._bound


class LogMasks(TrainerCallback):
    """Add :meth:`graddrop.FusedGradDropAdamW.log_values` to what the Trainer logs of training."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add them where a loss is logged; the Trainer has just waited for the device itself."""
        if logs is None or "loss" not in logs:
            return
        values = _own(kwargs["optimizer"]).log_values(wait=True)
        values["dropped_layers"] = len(values["dropped_layers"])
        found = {name: value for name, value in values.items() if value is not None}
        logs |= found
        state.log_history[-1] |= found


class SkipDroppedMixin:
    """Lets a Trainer leave out the backward pass of what the next step drops as a whole.

    ::

        class LayerTrainer(SkipDroppedMixin, Trainer):
            pass

    Each ``training_step`` is a block of :meth:`graddrop.FusedGradDropAdamW.skip_dropped`, whose
    conditions hold: the training is the same, bit for bit, and the Trainer must not clip by a norm
    of its own, which would miss what is skipped. Several processes need
    ``TrainingArguments(ddp_find_unused_parameters=True)``.

    Raises:
        TypeError: a subclass names a Trainer first, whose ``training_step`` would be the one that
            is called.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass that would never skip."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(SkipDroppedMixin)]
        hiding = [
            base.__name__
            for base in before
            if "training_step" in vars(base) and not issubclass(base, SkipDroppedMixin)
        ]
        if hiding:
            raise TypeError(
                f"expected SkipDroppedMixin before {hiding[-1]}, which has a training_step of its "
                f"own: class {cls.__name__}(SkipDroppedMixin, {hiding[-1]})"
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's.

        Raises:
            TypeError: another optimizer than :class:`graddrop.FusedGradDropAdamW`.
            ValueError: the Trainer clips gradients; as ``skip_dropped``.
            RuntimeError: as ``skip_dropped``.
        """
        trainer: Any = self
        optimizer = _own(trainer.optimizer)
        if trainer.args.max_grad_norm:
            raise ValueError(
                "SkipDroppedMixin expects TrainingArguments(max_grad_norm=0), got "
                f"{trainer.args.max_grad_norm}: the norm would miss what is skipped; give the "
                "optimizer max_grad_norm with masked_norm=True"
            )
        parent: Any = super()
        with optimizer.skip_dropped():
            return parent.training_step(*args, **kwargs)
