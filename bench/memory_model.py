"""How much memory the training of an encoder takes, by counting tensors."""

from enum import Enum


class Precision(Enum):
    """In what parameters are kept and layers are computed."""

    FP32 = "fp32"
    BF16 = "bf16"
    BF16_MIXED = "bf16-mixed"


# Bytes per parameter: its value and its gradient; both moments are fp32 (4 + 4) at every precision.
_STORED = {Precision.FP32: (4, 4), Precision.BF16: (2, 2), Precision.BF16_MIXED: (4, 4)}
_MOMENTS = 8
# Bytes per entry of an activation.
_COMPUTED = {Precision.FP32: 4, Precision.BF16: 2, Precision.BF16_MIXED: 2}


def predict(
    n_parameters: int,
    precision: Precision,
    *,
    layers: int,
    hidden: int,
    batch: int,
    length: int,
    recompute: bool,
) -> dict[str, int]:
    """Predict the bytes of a training step at its peak.

    Activations are those a layer keeps for its backward pass, 16 tensors of (batch, length, hidden)
    and two dropout masks of one byte: at two bytes per entry the 34 bytes of Korthikanti et al.
    2022 (arXiv 2205.05198, equation 1). Its second term, the attention weights of every head, is
    left out: fused attention does not keep them. Embeddings and head, small beside the layers, are
    not counted; nor are temporary buffers.

    Args:
        n_parameters: Of the whole model.
        precision: Of parameters and activations.
        layers: Number of layers.
        hidden: Width of the model.
        batch: Sequences per step.
        length: Sub-words per sequence.
        recompute: Whether layers keep their input alone and are computed again, one at a time.

    Returns:
        Bytes of `parameters`, `gradients`, `moments`, `activations`, and their `total`; with mixed
        precision also of the 16-bit `copies` of the layers' weights that autocast keeps for a step.
    """
    value, gradient = _STORED[precision]
    entries, size = batch * length * hidden, _COMPUTED[precision]
    layer = entries * (16 * size + 2)
    found = {
        "parameters": value * n_parameters,
        "gradients": gradient * n_parameters,
        "moments": _MOMENTS * n_parameters,
        "activations": layers * entries * size + layer if recompute else layers * layer,
    }
    if precision is Precision.BF16_MIXED:
        # Four matrices of attention, two of 4 times the width.
        found["copies"] = 2 * layers * 12 * hidden * hidden
    return found | {"total": sum(found.values())}
