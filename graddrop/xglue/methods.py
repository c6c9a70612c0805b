"""The fine-tuning methods that are compared, as one table: adding a method is adding a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        summary: What it does, in a few words.
        drop_prob: Drop probability unless the user names another.
        knobs: Further keyword arguments of the optimizer.
    """

    summary: str
    drop_prob: float = 0.0
    knobs: Mapping[str, Any] = field(default_factory=dict)


METHODS: Mapping[str, Method] = {
    "standard": Method("every gradient is used"),
    "graddrop": Method("each gradient entry is dropped at random, anew at each step", 0.5),
}


def _is_head(model: "PreTrainedModel", name: str, module: "torch.nn.Module") -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _is_embedding(model: "PreTrainedModel", name: str, module: "torch.nn.Module") -> bool:
    import torch

    return isinstance(module, torch.nn.Embedding)


def _is_norm(model: "PreTrainedModel", name: str, module: "torch.nn.Module") -> bool:
    return "norm" in type(module).__name__.lower()


def _is_bias(model: "PreTrainedModel", name: str, module: "torch.nn.Module") -> bool:
    return name.endswith("bias")


EXEMPTIONS: Mapping[str, Callable[["PreTrainedModel", str, "torch.nn.Module"], bool]] = {
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
