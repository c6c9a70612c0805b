"""Stochastic gradient masking for fine-tuning, fused into AdamW."""

from . import schedules
from .functional import graddrop_adamw_
from .mask import Shard
from .optimizer import FusedGradDropAdamW

__version__ = "0.1.0"
__all__ = ["FusedGradDropAdamW", "Shard", "graddrop_adamw_", "schedules", "__version__"]
