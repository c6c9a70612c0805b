"""Stochastic gradient masking for fine-tuning, fused into AdamW.

What stands here is imported when it is first used: the command line answers without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import schedules
    from .functional import graddrop_adamw_
    from .mask import Shard
    from .optimizer import FusedGradDropAdamW
    from .trainer import trainer_kwargs
    from .unfreezing import GradualUnfreezing

__version__ = "0.1.0"
_HOMES = {
    "FusedGradDropAdamW": "optimizer",
    "GradualUnfreezing": "unfreezing",
    "Shard": "mask",
    "graddrop_adamw_": "functional",
    "trainer_kwargs": "trainer",
}
__all__ = [
    "FusedGradDropAdamW",
    "GradualUnfreezing",
    "Shard",
    "graddrop_adamw_",
    "schedules",
    "trainer_kwargs",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "schedules":
        return import_module(".schedules", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
