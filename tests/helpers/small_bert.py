"""A small BERT, whose pooler is a part of the head or of the encoder."""

from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel

from graddrop.xglue.heads.model import load_tokenizer


def bert(folder: Path, **changes: Any) -> str:
    """A folder with a small BERT encoder, and a tokenizer."""
    values: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    values |= {"vocab_size": 2000, "intermediate_size": 64}
    pooler = changes.pop("pooler", False)
    BertModel(BertConfig(**values), add_pooling_layer=pooler).save_pretrained(folder)
    load_tokenizer("tiny", ["a b"]).save_pretrained(folder)
    return str(folder)


POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
