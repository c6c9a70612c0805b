"""What to pretrain, and how."""

import math
from dataclasses import dataclass

HEAD_SIZE = 32
"""Width of one attention head."""

RESULT_FILE = "pretrain.json"


@dataclass(frozen=True)
class PretrainConfig:
    """What to pretrain, and how.

    Args:
        text: Folder with one `<language>.txt` per language: UTF-8, one sentence per line.
        output: Model folder to make, for `from_pretrained`.
        vocab_size: Most sub-words of the tokenizer.
        hidden_size: Width of the layers, a multiple of 32.
        layers: Number of layers.
        max_length: Sub-words per line; the rest of a longer line is not used.
        epochs: Passes over the lines, those repeated by `smoothing` counted as often as they are.
        batch_size: Lines per optimizer step.
        lr: Peak learning rate; linear warm-up over a tenth of the steps, linear decay to zero.
        mask_prob: Share of the sub-words that are hidden, in (0, 1).
        smoothing: Exponent a in (0, 1]: a language with n lines is read as if it had n^a (up to
            a common factor), as in XLM-R, whose a is 0.3.
        seed: Of the weights, the order and the masks.

    Raises:
        ValueError: If a value is out of its range.
    """

    text: str
    output: str
    vocab_size: int = 2500
    hidden_size: int = 64
    layers: int = 2
    max_length: int = 64
    epochs: float = 3.0
    batch_size: int = 48
    lr: float = 3e-3
    mask_prob: float = 0.3
    smoothing: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "epochs", "batch_size", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.hidden_size % HEAD_SIZE:
            raise ValueError(
                f"hidden_size must be a multiple of {HEAD_SIZE}, got {self.hidden_size}"
            )
        if not 4 <= self.max_length <= 512:
            raise ValueError(f"max_length must be in [4, 512], got {self.max_length}")
        if not 0 < self.mask_prob < 1:
            raise ValueError(f"mask_prob must be in (0, 1), got {self.mask_prob}")
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing must be in (0, 1], got {self.smoothing}")
