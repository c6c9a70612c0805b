"""The fine-tuning methods that are compared, as one table: adding a method is adding a row.

GradDrop and its variants follow O'Neill & Dutta (arXiv 2307.10098) in our reading of it,
Child-Tuning follows Xu et al. (arXiv 2109.05687), gradual unfreezing Howard & Ruder (arXiv
1801.06146).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        summary: What it does, in a few words.
        drop_prob: Drop probability unless the user names another.
        masks: Whether the optimizer masks with that probability; otherwise it has another use.
        knobs: Further keyword arguments of the optimizer.
        lr_factor: From the drop probability to a factor of the learning rate.
        trains: `all`, `head` (nothing else), or `gradually` (top down, one layer after another).
    """

    summary: str
    drop_prob: float = 0.0
    masks: bool = True
    knobs: Mapping[str, Any] = field(default_factory=dict)
    lr_factor: Callable[[float], float] = lambda drop_prob: 1.0
    trains: str = "all"


METHODS: Mapping[str, Method] = {
    "standard": Method("every gradient is used"),
    "head-only": Method("only the task's head is trained", trains="head"),
    "gradual-unfreezing": Method(
        "layers are released one after another, top down, embeddings last", trains="gradually"
    ),
    "graddrop": Method("each gradient entry is dropped at random, anew at each step", 0.5),
    "graddrop-epoch": Method(
        "each gradient entry is dropped at random, anew at each epoch",
        0.5,
        knobs={"period": "epoch"},
    ),
    "layer-graddrop": Method(
        "the gradients of whole layers are dropped at random, anew at each step",
        0.5,
        knobs={"granularity": "layer"},
    ),
    "child-tuning-f": Method(
        "as graddrop, what is kept scaled by 1/(1 - drop_prob)", 0.7, knobs={"rescale": True}
    ),
    # With masks drawn anew at each step the mean step of AdamW shrinks by sqrt(1 - drop_prob):
    # what remains of a difference to this control is the masks' own.
    "lr-matched": Method(
        "standard with lr * sqrt(1 - drop_prob), the control for graddrop",
        0.5,
        masks=False,
        lr_factor=lambda drop_prob: math.sqrt(1 - drop_prob),
    ),
}


def _is_head(model: "PreTrainedModel", name: str, module: "nn.Module") -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _is_embedding(model: "PreTrainedModel", name: str, module: "nn.Module") -> bool:
    from torch import nn

    return isinstance(module, nn.Embedding)


def _is_norm(model: "PreTrainedModel", name: str, module: "nn.Module") -> bool:
    return "norm" in type(module).__name__.lower()


def _is_bias(model: "PreTrainedModel", name: str, module: "nn.Module") -> bool:
    return name.endswith("bias")


EXEMPTIONS: Mapping[str, Callable[["PreTrainedModel", str, "nn.Module"], bool]] = {
    "head": _is_head,
    "embeddings": _is_embedding,
    "norms": _is_norm,
    "biases": _is_bias,
}
"""Kinds of parameters that may be exempt from masking, with the rule that tells them."""


def parameter_groups(
    model: "PreTrainedModel", weight_decay: float, exempt: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Sort a model's parameters into groups for the optimizer.

    Args:
        model: The model; parameters that need no gradient are left out.
        weight_decay: For everything but biases and norms, which get none.
        exempt: Keys of `EXEMPTIONS`; parameters of these kinds get `drop_prob=0`.

    Returns:
        Up to four groups of named parameters, in the model's order within each.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for prefix, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{local}" if prefix else local
            if not parameter.requires_grad:
                continue
            plain = _is_norm(model, name, module) or _is_bias(model, name, module)
            unmasked = any(EXEMPTIONS[kind](model, name, module) for kind in exempt)
            group = groups.setdefault(
                (plain, unmasked),
                {
                    "params": [],
                    "weight_decay": 0.0 if plain else weight_decay,
                    **({"drop_prob": 0.0} if unmasked else {}),
                },
            )
            group["params"].append((name, parameter))
    return list(groups.values())


def freeze_all_but_head(model: "PreTrainedModel") -> None:
    """Take the gradient from every parameter below the task's head."""
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
