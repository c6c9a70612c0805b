"""What differs between labelling words, classifying segments, and finding spans: one table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads import sequence as sequence_head
from graddrop.xglue.heads import span as span_head
from graddrop.xglue.heads import token as token_head
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


Encode = Callable[[dict[str, list[Any]], list[int]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Head:
    """One row of the table.

    Args:
        auto_model: Class of transformers that builds encoder plus head.
        encoder: From task, tokenizer and longest input to a function that turns a batch of
            examples, given as columns, and their indices into model inputs.
        collator: Class of transformers that pads a batch, made from the tokenizer.
        class_logits: From the model's output to the logits of each label's classes: the shape of
            the labels, and one dimension more.
        reduce: From logits to what is kept of them while evaluating, on the device.
        decode: From task, examples, features and what was kept to one prediction per example.
    """

    auto_model: str
    encoder: Callable[[Task, "PreTrainedTokenizerBase", int], Encode]
    collator: str
    class_logits: Callable[[Any], "torch.Tensor"]
    reduce: Callable[[Any, Any], "torch.Tensor"]
    decode: Callable[..., list[Any]]


def _logits(outputs: Any) -> "torch.Tensor":
    return outputs.logits


def _logits_of_positions(outputs: Any) -> "torch.Tensor":
    import torch

    return torch.stack([outputs.start_logits, outputs.end_logits], dim=1)


def _classes(logits: "torch.Tensor", labels: Any) -> "torch.Tensor":
    """Keep class numbers only: logits of all words of a test set would fill the memory."""
    return logits.argmax(-1)


def _all(logits: "torch.Tensor", labels: Any) -> "torch.Tensor":
    return logits


def _starts_and_ends(logits: tuple["torch.Tensor", ...], labels: Any) -> "torch.Tensor":
    import torch

    return torch.stack(logits[:2], dim=-1)


HEADS: dict[str, Head] = {
    "token": Head(
        auto_model="AutoModelForTokenClassification",
        encoder=token_head.encoder,
        collator="DataCollatorForTokenClassification",
        class_logits=_logits,
        reduce=_classes,
        decode=token_head.decode,
    ),
    "sequence": Head(
        auto_model="AutoModelForSequenceClassification",
        encoder=sequence_head.encoder,
        collator="DataCollatorWithPadding",
        class_logits=_logits,
        reduce=_all,
        decode=sequence_head.decode,
    ),
    "span": Head(
        auto_model="AutoModelForQuestionAnswering",
        encoder=span_head.encoder,
        collator="DataCollatorWithPadding",
        class_logits=_logits_of_positions,
        reduce=_starts_and_ends,
        decode=span_head.decode,
    ),
}
