"""Published masking methods as presets of the optimizer's knobs: adding one is adding a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Knobs that make ``FusedGradDropAdamW`` a method.

    Attributes:
        source: who published it, and where we read more into it than its text says.
        knobs: keyword arguments of the optimizer; ``drop_prob`` stays the user's.
    """

    source: str
    knobs: Mapping[str, Any] = field(default_factory=dict)


_GRADDROP = "O'Neill & Dutta 2023, arXiv 2307.10098, in our reading of its abstract"

PRESETS: Mapping[str, Preset] = {
    "graddrop": Preset(_GRADDROP),
    "graddrop-epoch": Preset(_GRADDROP, {"period": "epoch"}),
    "layer-graddrop": Preset(_GRADDROP, {"granularity": "layer"}),
    "child-tuning-f": Preset("Xu et al. 2021, arXiv 2109.05687", {"rescale": True}),
    "lr-dropout": Preset("Lin et al. 2019, arXiv 1912.00144", {"site": "update"}),
    "half-fine-tuning": Preset(
        "Hui et al. 2024, arXiv 2404.18466, each tensor drawn for itself",
        {"granularity": "tensor", "period": "epoch", "site": "freeze"},
    ),
}
