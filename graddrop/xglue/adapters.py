"""Low-rank adapters that are trained in place of a model's own weights.

LoRA, Hu et al. 2021, arXiv 2106.09685: a linear layer W of an encoder becomes W + (alpha / r) B A,
where A of r rows is drawn at random, B is zero at the beginning, and W stays as it is. By PEFT.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

RANK = 8
"""Rows of A, columns of B."""

SETTINGS = {
    "r": RANK,
    # Adam's step knows no scale of the gradient: alpha acts as the learning rate does, which is
    # tuned. The paper sets it to the first r that is tried and leaves it there.
    "lora_alpha": RANK,
    # No other way of training has a dropout more than the model's own.
    "lora_dropout": 0.0,
}
"""Of `peft.LoraConfig`."""


def check_installed() -> None:
    """Refuse to go on without PEFT.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "the method lora needs PEFT, which is not installed: in a checkout: "
            'pip install ".[lora]"'
        ) from error


def add_adapters(model: "nn.Module", head: Collection[str]) -> None:
    """Give every linear layer outside the head an adapter; train adapters and head alone.

    The model keeps its class. Layers get other modules, and their weights other names, until
    `merge_adapters`.

    Args:
        model: Changed in place. Adapters are drawn from torch's default generator.
        head: Names of its parameters that are trained as they are.
    """
    from peft import LoraConfig, LoraModel
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and f"{name}.weight" not in head
    }
    config = LoraConfig(
        **SETTINGS,
        target_modules=list(linear),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
    )
    LoraModel(model, config, "default")
    for name, parameter in model.named_parameters():
        if name in head:
            parameter.requires_grad_(True)


def merge_adapters(model: "nn.Module") -> None:
    """Add what adapters have learnt to the weights, and take them away: W becomes W + B A.

    Args:
        model: Changed in place; it has the modules and names again that it had before
            `add_adapters`.
    """
    for name, layer in list(_adapted(model)):
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config


def _adapted(model: "nn.Module") -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
