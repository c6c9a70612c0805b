"""Models of random weights in named sizes, for what is measured or counted of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """Of a transformer, and of the batches that it is trained on.

    Attributes:
        kind: ``encoder`` (XLM-R), ``decoder`` (GPT-2) or ``gated decoder`` (Llama).
        layers: how many.
        width: of what goes from layer to layer.
        feed_forward: width within the second half of a layer.
        heads: of attention.
        vocabulary: rows of the embeddings.
        positions: longest input.
        batch: examples and tokens of each.
        dtype: of parameters, gradients and activations; moments are float32.
    """

    kind: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    vocabulary: int
    positions: int
    batch: tuple[int, int]
    dtype: torch.dtype = torch.float32

    def scaled(
        self, layers: int | None = None, width: int | None = None, vocabulary: int | None = None
    ) -> "Size":
        """The same kind in another size, whose other widths are in proportion; None leaves it."""
        width = width or self.width
        return replace(
            self,
            layers=layers or self.layers,
            width=width,
            feed_forward=round(self.feed_forward * width / self.width),
            heads=max(1, self.heads * width // self.width),
            vocabulary=vocabulary or self.vocabulary,
        )

    def build(self, device: str = "cpu", **changes: Any) -> Any:
        """The model, with random weights and without a pooler, which nothing here would train.

        Args:
            device: where its weights are made.
            **changes: of the configuration that transformers has of this kind.
        """
        from transformers import AutoModel, GPT2Config, LlamaConfig, XLMRobertaConfig

        size = {"vocab_size": self.vocabulary, "bos_token_id": 0, "eos_token_id": 2}
        size |= {"type_vocab_size": 1} if self.kind == "encoder" else {}
        if self.kind == "decoder":
            names = {"n_embd": self.width, "n_layer": self.layers, "n_head": self.heads}
            config: Any = GPT2Config(
                **size | names | {"n_inner": self.feed_forward, "n_positions": self.positions}
            )
        else:
            of_kind = XLMRobertaConfig if self.kind == "encoder" else LlamaConfig
            config = of_kind(
                **size,
                hidden_size=self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=self.feed_forward,
                max_position_embeddings=self.positions,
            )
        config.update(changes)
        pooler = {"add_pooling_layer": False} if self.kind == "encoder" else {}
        with torch.device(device):
            return AutoModel.from_config(config, dtype=self.dtype, **pooler)


SIZES = {
    "encoder": Size("encoder", 12, 384, 1536, 12, 20_000, 514, (16, 64)),
    "decoder": Size("decoder", 12, 384, 1536, 12, 20_000, 1024, (16, 64)),
    "xlm-roberta-large": Size("encoder", 24, 1024, 4096, 16, 250_002, 514, (32, 128)),
    "decoder-7b": Size(
        "gated decoder", 32, 4096, 11_008, 32, 32_000, 2048, (8, 1024), torch.bfloat16
    ),
}
