"""Layers that are trained from later on: released one after another, from the top down."""

from collections.abc import Set
from numbers import Real
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .exemptions import head_of
from .mask import layer_of


def release_order(model: nn.Module) -> list[frozenset[str]]:
    """A model's parameters by name, without the head's, in the order in which they are released.

    From the top layer, with what lies above it, down; whatever is in no layer comes last, with the
    embeddings.

    Args:
        model: one of transformers, whose parameters stand in the order of the forward pass.

    Returns:
        One set for each layer that names tell (``graddrop.mask.layer_of``), then one of the rest.

    Raises:
        ValueError: as :func:`graddrop.exemptions.head_of`.
    """
    embeddings = {
        f"{prefix}.{local}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        for local, _ in module.named_parameters(recurse=False)
    }
    head = head_of(model)
    layers = {name: layer_of(name) for name, _ in model.named_parameters() if name not in head}
    order = sorted({layer for layer in layers.values() if layer is not None}, reverse=True)
    stages: dict[int | None, set[str]] = {layer: set() for layer in [*order, None]}
    above = False
    for name, layer in layers.items():
        above |= layer is not None
        on_top = layer is None and above and name not in embeddings
        stages[order[0] if on_top else layer].add(name)
    return [frozenset(stage) for stage in stages.values()]


class GradualUnfreezing(TrainerCallback):
    """Release a model's layers one after another, the top one first, the embeddings last.

    Howard & Ruder 2018, arXiv 1801.06146, who release one layer an epoch; here they are spread
    evenly. It goes with any optimizer::

        trainer = Trainer(
            model=model, args=args, train_dataset=data,
            callbacks=[graddrop.GradualUnfreezing(over=0.5)],
        )

    The head is trained from the beginning; so is the top layer of a model that has none of its own,
    such as a causal language model whose output weights are its embeddings. Parameters that need no
    gradient when the training begins never get one: PEFT's base weights, what you froze.

    What is released depends on the step alone, so that a resumed run goes on as it was. Frozen
    parameters get no gradient: they cost no backward pass and do not count in the gradient's norm.
    DistributedDataParallel needs ``ddp_find_unused_parameters=True``, as the Trainer gives it to
    models of transformers without gradient checkpointing; ``torch.compile`` compiles anew for each
    stage.

    Args:
        over: share of the training, in (0, 1], that is divided evenly among the stages: the head,
            each layer, and the rest. After it everything is trained.

    Raises:
        ValueError: ``over`` outside its range; when the training begins, a model whose head or
            whose layers no rule tells.
        TypeError: ``over`` is no number.
    """

    def __init__(self, over: float) -> None:
        if not isinstance(over, Real) or isinstance(over, bool):
            raise TypeError(f"Invalid over: {over!r}: expected a number in (0, 1]")
        if not 0 < over <= 1:
            raise ValueError(f"Invalid over: {over}: expected a share of the training, in (0, 1]")
        self.over: float = over
        self._stages: list[frozenset[str]] = []
        self._frozen: frozenset[str] = frozenset()  # by us, at present

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the stages of the parameters that are to be trained.

        Raises:
            ValueError: a model whose head or whose layers no rule tells.
        """
        model = kwargs["model"]
        order = release_order(model)
        if len(order) < 2:
            raise ValueError(
                'expected parameters in layers by their names, as "encoder.layer.3.attention" is '
                f"in one, got a {type(model).__name__} without: it cannot be released by layers"
            )
        # A training that was cut short has left some of them frozen.
        trained = {name for name, p in model.named_parameters() if p.requires_grad} | self._frozen
        self._stages = [stage & trained for stage in [head_of(model), *order] if stage & trained]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set which parameters want gradients in this step."""
        later = int(state.global_step * len(self._stages) / (self.over * state.max_steps))
        self._freeze(kwargs["model"], frozenset().union(*self._stages[1 + later :]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Release what is left, where the training ends early."""
        self._freeze(kwargs["model"], frozenset())

    def _freeze(self, model: nn.Module, names: Set[str]) -> None:
        """Freeze these parameters, and release those that we froze before."""
        if names == self._frozen:
            return
        for name, param in model.named_parameters():
            if name in names or name in self._frozen:
                param.requires_grad_(name not in names)
        self._frozen = frozenset(names)
