"""The fine-tuning methods that are compared, as one table: adding a method is adding a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graddrop.exemptions import exempt_names, head_of, is_bias, is_norm, owned_parameters
from graddrop.methods import PRESETS, Preset
from graddrop.xglue.adapters import add_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def drop_probs_of(drop_prob: float | tuple[float, ...] | None) -> tuple[float, ...]:
    """The drop probabilities of a setting: none, one for the whole training, or several."""
    if isinstance(drop_prob, tuple):
        return drop_prob
    return () if drop_prob is None else (drop_prob,)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        summary: What it does, in a few words.
        masks: What makes its masks; None masks nothing.
        drop_prob: Drop probability unless the user names another, or one for each epoch; of
            controls, that of the masks whose control they are.
        shrinks_step: Whether the learning rate of what would be masked is lowered to the mean step
            that masks would leave, see `graddrop.xglue.controls.mean_step`.
        shrinks_batch: Whether a step takes (1 - drop_prob) of the batch, over as many steps.
        trains: `all`, `head` (nothing else), `upper-half` (of the layers, and the head),
            `gradually` (top down, one layer after another; Howard & Ruder 2018, arXiv 1801.06146),
            or `adapters` (see `graddrop.xglue.adapters`, and the head).
    """

    summary: str
    masks: Preset | None = None
    drop_prob: float | tuple[float, ...] = 0.0
    shrinks_step: bool = False
    shrinks_batch: bool = False
    trains: str = "all"

    @property
    def drop_probs(self) -> tuple[float, ...]:
        """The drop probability, or those that follow each other."""
        return drop_probs_of(self.drop_prob)


METHODS: Mapping[str, Method] = {
    "standard": Method("every gradient is used"),
    "head-only": Method("only the task's head is trained", trains="head"),
    "upper-half": Method(
        "the upper half of the layers is trained, embeddings and the lower half stay as they are",
        trains="upper-half",
    ),
    "lora": Method(
        "low-rank adapters of the encoder's linear layers are trained, and the head",
        trains="adapters",
    ),
    "gradual-unfreezing": Method(
        "layers are released one after another, top down, embeddings last", trains="gradually"
    ),
    "graddrop": Method(
        "gradient entries are dropped at random, anew each step", PRESETS["graddrop"], 0.5
    ),
    "graddrop-epoch": Method(
        "gradient entries are dropped at random, anew each epoch",
        PRESETS["graddrop-epoch"],
        0.5,
    ),
    "layer-graddrop": Method(
        "gradients of whole layers are dropped at random, anew each step",
        PRESETS["layer-graddrop"],
        0.5,
    ),
    "child-tuning-f": Method(
        "as graddrop, and what is kept is divided by the keep probability",
        PRESETS["child-tuning-f"],
        0.7,
    ),
    "child-tuning-d": Method(
        "in the layers only the entries of the highest Fisher information get gradients",
        PRESETS["child-tuning-d"],
        0.7,
    ),
    "sift": Method(
        "of each tensor only the entries of the largest first gradients are trained",
        PRESETS["sift"],
        0.95,
    ),
    "fish-mask": Method(
        "only the entries of the highest Fisher information are trained",
        PRESETS["fish-mask"],
        0.995,
    ),
    "lr-dropout": Method("steps of entries are dropped at random", PRESETS["lr-dropout"], 0.5),
    "half-fine-tuning": Method(
        "half of each layer's attention, feed-forward and norms is frozen, anew each epoch",
        PRESETS["half-fine-tuning"],
        0.5,
    ),
    "lisa": Method(
        "of 12 layers 2 are trained, drawn anew every 20 steps; --drop-prob says how many",
        PRESETS["lisa"],
        1 - 2 / 12,
    ),
    "badam": Method(
        "of 12 layers one is trained, another every 100 steps; --drop-prob says how many",
        PRESETS["badam"],
        1 - 1 / 12,
    ),
    "skip-update": Method(
        "whole tensors skip their step at random, the others' is scaled",
        PRESETS["skip-update"],
        0.5,
    ),
    "magma": Method(
        "whole tensors skip their step at random, the others' is scaled by how gradients agree",
        PRESETS["magma"],
        0.5,
    ),
    "random-masking": Method(
        "one random set of entries is trained from beginning to end",
        PRESETS["random-masking"],
        0.9,
    ),
    "sparse-unfreezing": Method(
        "random entries are released, anew each epoch, more of them in each of the first four",
        PRESETS["sparse-unfreezing"],
        (1.0, 13 / 16, 10 / 16, 7 / 16),
    ),
    "sparse-unfreezing-cumulative": Method(
        "random entries are released in each of the first four epochs and stay released",
        PRESETS["sparse-unfreezing-cumulative"],
        (1.0, 13 / 16, 10 / 16, 7 / 16),
    ),
    "lr-matched": Method(
        "control of masks: standard, with the learning rate that gives masks' mean step",
        drop_prob=0.5,
        shrinks_step=True,
    ),
    # The first and second moment of an entry that is kept with probability 1 - p are those of a
    # mean over (1 - p) of the batch, but for a scale that AdamW does not see.
    "batch-matched": Method(
        "control of graddrop: standard, with (1 - drop_prob) of the batch and as many steps",
        drop_prob=0.5,
        shrinks_batch=True,
    ),
}


def parameter_groups(
    model: "PreTrainedModel",
    weight_decay: float,
    exempt: tuple[str, ...],
    *,
    granularity: str = "element",
    masked: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Sort a model's parameters into groups for the optimizer.

    Args:
        model: The model; parameters that need no gradient are left out.
        weight_decay: For everything but biases and norms, which get none.
        exempt: Of `graddrop.exemptions.EXEMPTIONS`; parameters of these kinds get `drop_prob=0`.
        granularity: What shares one decision; with `layer` parameters outside the layers get
            `drop_prob=0` as well.
        masked: Settings of the other parameters' groups.

    Returns:
        Up to four groups of named parameters, in the model's order within each.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    exempted = exempt_names(model, exempt)
    for name, parameter, module in owned_parameters(model):
        plain = is_norm(module) or is_bias(name)
        unmasked = name in exempted or (granularity == "layer" and _layer_of(name) is None)
        group = groups.setdefault(
            (plain, unmasked),
            {
                "params": [],
                "weight_decay": 0.0 if plain else weight_decay,
                **({"drop_prob": 0.0} if unmasked else masked or {}),
            },
        )
        group["params"].append((name, parameter))
    return list(groups.values())


def freeze_for(model: "PreTrainedModel", trains: str) -> None:
    """Take the gradient from what a method leaves as it is from beginning to end.

    Args:
        model: The model, which gets adapters where these are trained in its place.
        trains: As in `Method`. Of an odd number of layers the middle one is in the upper half.
    """
    if trains == "adapters":
        add_adapters(model, head_of(model))
    if trains not in ("head", "upper-half"):
        return
    from graddrop.unfreezing import release_order

    *layers, _ = release_order(model)
    upper = layers[: (len(layers) + 1) // 2] if trains == "upper-half" else []
    trained = head_of(model).union(*upper)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def check_layers(model: "PreTrainedModel") -> None:
    """Refuse a model whose layers are not told apart by its parameters' names.

    Raises:
        ValueError: If fewer layers are found than there are, or one number stands for several.
    """
    stacks: dict[int, set[str]] = {}
    for name, _ in model.named_parameters():
        layer = _layer_of(name)
        if layer is not None:
            stacks.setdefault(layer, set()).add(name[: name.index(f".{layer}.")])
    kind = type(model).__name__
    wanted = getattr(model.config, "num_hidden_layers", None)
    if not stacks or (wanted is not None and len(stacks) < wanted):
        raise ValueError(
            f"the method goes by layers, and {kind} tells {len(stacks)} of its {wanted} layers by "
            "name; choose another method or model"
        )
    shared = next((sorted(places) for places in stacks.values() if len(places) > 1), None)
    if shared:
        raise ValueError(
            f"the method goes by layers, and {kind} has several stacks of them "
            f"({', '.join(shared)}); choose another method or model"
        )


def _layer_of(name: str) -> int | None:
    """Tell a parameter's layer as the optimizer does; the table alone needs no torch."""
    from graddrop.mask import layer_of

    return layer_of(name)
