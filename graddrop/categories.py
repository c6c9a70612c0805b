"""Categories of a transformer's parameters, whose shares are dropped each by itself.

Half fine-tuning (Hui et al. 2024, arXiv 2404.18466) freezes half of the attention matrices of each
layer, half of its feed-forward matrices and half of its norms. Wholes are counted together where
param groups share their seed, so a category is a group with a seed of its own. ::

    knobs = PRESETS["half-fine-tuning"].knobs
    optimizer = FusedGradDropAdamW(by_category(model), drop_prob=0.5, **knobs)
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from .exemptions import is_bias, is_norm, owned_parameters
from .mask import layer_of


def category_of(name: str, module: nn.Module) -> str | None:
    """The category of a parameter: ``"norm"``, ``"attention"``, ``"feed-forward"``, or None.

    Norms are told by the class of their module, attention by the name within the layer; what else a
    layer has is of its feed-forward part. What lies in no layer by its name, as embeddings and
    heads do, is of no category.

    Args:
        name: of the parameter, as ``named_parameters`` has it.
        module: that owns it.
    """
    layer = layer_of(name)
    if layer is None:
        return None
    if is_norm(module):
        return "norm"
    _, _, within = name.partition(f".{layer}.")
    return "attention" if "att" in within.lower() else "feed-forward"


def by_category(
    model: nn.Module, groups: Sequence[dict[str, Any]] | None = None, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Param groups of which each is a category's: matrices, or biases, of one layer.

    With ``granularity="tensor"`` and ``select="exact"`` each of them drops its own share. Where a
    layer has an odd number, as of three feed-forward matrices, those of all layers are a group: of
    each layer's half would be no whole number. What is of no category is never dropped.

    Args:
        model: a transformer whose layers its parameters' names tell.
        groups: param groups of its named parameters, to be divided; their other values stay, those
            with ``drop_prob=0`` stay whole. None: one of all that are trained.
        seed: of the masks; each category has one of its own, made of it.

    Returns:
        Groups of named parameters.

    Raises:
        ValueError: no parameter is of any category, or one is not the model's.
        TypeError: parameters without names.
    """
    kinds = {id(param): _kind(name, module) for name, param, module in owned_parameters(model)}
    if groups is None:
        groups = [{"params": [(name, param) for name, param, _ in owned_parameters(model)]}]
    numbers = Counter(kinds.values())
    odd = {kind[:2] for kind, n in numbers.items() if kind is not None and n % 2}
    divided: dict[tuple[int, Any], list[Any]] = {}
    for number, group in enumerate(groups):
        for item in group["params"]:
            if not isinstance(item, tuple):
                raise TypeError(
                    f"expected pairs of names and parameters in param group {number}, got "
                    f"{type(item)}: a list of model.named_parameters()"
                )
            name, param = item
            if id(param) not in kinds:
                raise ValueError(f"expected parameters of the model, got {name!r}, which is not")
            key: Any = kinds[id(param)]
            if key is not None and key[:2] in odd:
                key = key[:2]
            divided.setdefault((number, "whole" if _is_exempt(group) else key), []).append(
                (name, param)
            )
    seeds: dict[Any, int] = {}
    result = []
    for (number, key), params in divided.items():
        group = {**groups[number], "params": params}
        if key is None:
            group["drop_prob"] = 0.0
        elif key != "whole":
            group["seed"] = seeds.setdefault(key, (seed + (len(seeds) + 1 << 32)) % (1 << 64))
        result.append(group)
    if not seeds:
        raise ValueError(
            f"expected layers to drop parts of, got none: no parameter of {type(model).__name__} "
            "is in a layer by its name"
        )
    return result


def _kind(name: str, module: nn.Module) -> tuple[str, bool, int | None] | None:
    """Category, whether it is a bias, and layer."""
    category = category_of(name, module)
    return None if category is None else (category, is_bias(name), layer_of(name))


def _is_exempt(group: dict[str, Any]) -> bool:
    return isinstance(group.get("drop_prob"), (int, float)) and group["drop_prob"] == 0
