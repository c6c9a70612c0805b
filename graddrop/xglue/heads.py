"""What differs between labelling words, classifying segments, and finding spans: one table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graddrop.xglue import token_head
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Head:
    """One row of the table.

    Args:
        auto_model: Class of transformers that builds encoder plus head.
        encoder: From task, tokenizer and longest input to a function for `Dataset.map`.
        collator: Class of transformers that pads a batch, made from the tokenizer.
        reduce: From logits to what is kept of them while evaluating, on the device.
        decode: From task, examples, features and what was kept to one prediction per example.
    """

    auto_model: str
    encoder: Callable[[Task, "PreTrainedTokenizerBase", int], Callable[..., dict[str, list[Any]]]]
    collator: str
    reduce: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    decode: Callable[..., list[Any]]


def _classes(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Keep class numbers only: logits of all words of a test set would fill the memory."""
    return logits.argmax(-1)


HEADS: dict[str, Head] = {
    "token": Head(
        auto_model="AutoModelForTokenClassification",
        encoder=token_head.encoder,
        collator="DataCollatorForTokenClassification",
        reduce=_classes,
        decode=token_head.decode,
    ),
}
