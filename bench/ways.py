"""Ways to train less of a model, as they are compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graddrop.methods import PRESETS


@dataclass(frozen=True)
class Way:
    """How much of a model is trained.

    Attributes:
        knobs: the optimizer's, for what lies in layers.
        lowest: the first layer that is trained, as a share of them; above 0 embeddings are not.
        lora: whether adapters are trained in place of the model's own weights.
        fused: whether torch's optimizer steps, in place of ours.
        categories: whether each category of a layer's parameters drops its own share
            (``graddrop.categories``).
    """

    knobs: Mapping[str, Any] = field(default_factory=lambda: {"drop_prob": 0.0})
    lowest: float = 0.0
    lora: bool = False
    fused: bool = False
    categories: bool = False

    @property
    def masks(self) -> bool:
        """Whether layers are dropped as a whole."""
        return "granularity" in self.knobs


def ways(n_layers: int) -> dict[str, Way]:
    """Standard fine-tuning first, then what trains less."""
    layers = PRESETS["layer-graddrop"].knobs
    halves = PRESETS["half-fine-tuning"]
    return {
        "standard": Way(),
        "layer-graddrop 0.25": Way({"drop_prob": 0.25, **layers}),
        "layer-graddrop 0.5": Way({"drop_prob": 0.5, **layers}),
        "layer-graddrop 0.75": Way({"drop_prob": 0.75, **layers}),
        "lisa": Way({"drop_prob": 1 - 2 / n_layers, **PRESETS["lisa"].knobs}),
        "half-fine-tuning": Way({"drop_prob": 0.5, **halves.knobs}, categories=halves.categories),
        "upper-half": Way(lowest=0.5),
        "head-only": Way(lowest=1.0),
        "lora": Way(lora=True),
        "lora, torch": Way(lora=True, fused=True),
    }
