"""Kinds of parameters that may be exempt from masking, with the rule that tells each."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

EXEMPTIONS = ("head", "embeddings", "norms", "biases")
"""Kinds of parameters, as a user names them."""


def set_head(model: "nn.Module", names: Collection[str]) -> None:
    """Say which parameters are the head's, where the rule of :func:`head_of` does not.

    Args:
        model: the model.
        names: of its parameters, as ``named_parameters`` has them.

    Raises:
        ValueError: a name that no parameter has.
        TypeError: a single name in place of a collection.
    """
    if isinstance(names, str):
        raise TypeError(f"expected a list of names, got {names!r}: pass [{names!r}]")
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if unknown := sorted(set(names) - known):
        raise ValueError(
            f"expected names of {type(model).__name__}'s parameters, got {unknown}, which none has"
        )
    loaded: Any = model
    loaded.head_parameters = frozenset(names)


def head_of(model: "nn.Module") -> frozenset[str]:
    """Names of the head's parameters: those of :func:`set_head`, or what is outside the base model.

    Args:
        model: one of transformers, bare or wrapped by PEFT, DistributedDataParallel or
            ``torch.compile``.

    Raises:
        ValueError: it is another one, so that no rule tells its head.
    """
    from torch import nn

    whole: Any = model
    said: frozenset[str] | None = getattr(whole, "head_parameters", None)
    if said is not None:
        return said
    bare: Any = model
    for wrapped in ("module", "_orig_mod"):
        bare = getattr(bare, wrapped, bare)
    if hasattr(bare, "get_base_model"):  # PEFT's
        bare = bare.get_base_model()
    if not isinstance(getattr(bare, "base_model", None), nn.Module):
        raise ValueError(
            f"expected a model of transformers to tell its head, got {type(bare).__name__}: say "
            "which parameters it has with graddrop.exemptions.set_head"
        )
    body = set(map(id, bare.base_model.parameters()))
    return frozenset(name for name, param in whole.named_parameters() if id(param) not in body)


def is_norm(module: "nn.Module") -> bool:
    """Whether a module is a normalisation, by its class."""
    return "norm" in type(module).__name__.lower()


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, by its name."""
    return name.endswith("bias")


def owned_parameters(model: "nn.Module") -> Iterator[tuple[str, "nn.Parameter", "nn.Module"]]:
    """Each parameter that is trained, once, with its name and the module that owns it."""
    seen: set[int] = set()  # a tied one is its first owner's
    for prefix, module in model.named_modules():
        for local, param in module.named_parameters(recurse=False):
            if param.requires_grad and id(param) not in seen:
                seen.add(id(param))
                yield f"{prefix}.{local}" if prefix else local, param, module


def exempt_names(model: "nn.Module", kinds: Collection[str]) -> frozenset[str]:
    """Names of the parameters of some kinds.

    Args:
        model: the model; parameters that need no gradient are left out.
        kinds: among :data:`EXEMPTIONS`.

    Raises:
        ValueError: an unknown kind, or a head that no rule tells.
        TypeError: a single kind in place of a collection.
    """
    from torch import nn

    if isinstance(kinds, str):
        raise TypeError(f"Invalid exempt: {kinds!r}: expected a list, such as [{kinds!r}]")
    if unknown := sorted(set(kinds) - set(EXEMPTIONS)):
        raise ValueError(f"Invalid exempt: {unknown}: expected some of {EXEMPTIONS}")
    head = head_of(model) if "head" in kinds else frozenset()
    return frozenset(
        name
        for name, _, module in owned_parameters(model)
        if name in head
        or ("embeddings" in kinds and isinstance(module, nn.Embedding))
        or ("norms" in kinds and is_norm(module))
        or ("biases" in kinds and is_bias(name))
    )
