"""Encoder and tokenizer of a run: by name, from a folder, or a tiny one made on the spot."""

import textwrap
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graddrop.exemptions import set_head
from graddrop.xglue.config import TINY
from graddrop.xglue.heads import HEADS
from graddrop.xglue.tasks import Task

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
    )

TINY_VOCABULARY = 2000
"""Most sub-words of the tiny model's tokenizer."""

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In the order of their numbers; the first four are those of XLM-R."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = TINY_VOCABULARY
) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer with XLM-R's special tokens and templates.

    Bytes are the alphabet, so any script can be written down even when the texts hold only one.
    The same texts give the same tokenizer, in every process.

    Args:
        texts: The training texts, consumed once.
        vocab_size: Most sub-words, at least 261 (the bytes and the special tokens).

    Returns:
        A tokenizer that `save_pretrained` writes and `AutoTokenizer` reads.

    Raises:
        ValueError: If `vocab_size` is too small.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_config(vocab_size: int) -> "XLMRobertaConfig":
    """Return the configuration of an XLM-R that trains in seconds on a CPU.

    Args:
        vocab_size: Sub-words of its tokenizer.

    Returns:
        2 layers of width 64 with 4 heads; about 0.2 million parameters beside the embeddings.
    """
    from transformers import XLMRobertaConfig

    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=514,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def load_tokenizer(name: str, texts: Iterable[str]) -> "PreTrainedTokenizerBase":
    """Load a tokenizer, or train the tiny model's one.

    Args:
        name: Name on the Hub, folder, or `tiny`.
        texts: What `tiny` is trained on; otherwise not consumed.

    Raises:
        ValueError: If there is no tokenizer of that name, or none with character offsets.
    """
    if name == TINY:
        return train_tokenizer(texts)
    from transformers import AutoTokenizer

    expected = (
        f"no tokenizer could be loaded for model {name!r}: expected a name on the Hub or a folder "
        "with a tokenizer next to the model"
    )
    with _refusing_whatever_fails(expected):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {name!r} gives no character offsets; use a fast one")
    return tokenizer


def load_model(
    name: str, task: Task, tokenizer: "PreTrainedTokenizerBase", seed: int
) -> "PreTrainedModel":
    """Load an encoder with the task's head on it, in fp32.

    Code that comes with a model is never run.

    Args:
        name: Name on the Hub, folder, or `tiny`.
        task: Row of the task table.
        tokenizer: The tokenizer that goes with it.
        seed: Seed of the new weights: the head's, or all of them for `tiny`.

    Returns:
        The model, with the names of its head's parameters in `head_parameters`: those outside the
        encoder, and those of the encoder's that the weights lack, such as a pooler.

    Raises:
        ValueError: If no such model can be loaded, it has a head for other labels, or its weights
            are not finite.
    """
    import torch
    import transformers

    head = HEADS[task.head]
    auto = getattr(transformers, head.auto_model)
    settings: dict[str, object] = {}
    if task.labels:
        settings["id2label"] = dict(enumerate(task.labels))
        settings["label2id"] = {label: number for number, label in enumerate(task.labels)}
    transformers.set_seed(seed)
    if name == TINY:
        config = tiny_config(len(tokenizer))
        config.update(settings)
        return _with_head(auto.from_config(config, dtype=torch.float32))
    with _refusing_whatever_fails(f"model {name!r} could not be loaded as {head.auto_model}"):
        try:
            # Weights kept in half precision would stay so, and small updates would be rounded away.
            model, info = auto.from_pretrained(
                name,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **settings,
            )
        except RuntimeError as error:
            if "mismatched" not in str(error):
                raise
            raise ValueError(
                f"it has a head for something else than task {task.name} with its "
                f"{len(task.labels)} labels; name the encoder that it was made from ({error})"
            ) from error
        for parameter_name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"{parameter_name} holds numbers that are not finite")
    return _with_head(model, frozenset(info["missing_keys"]))


def _with_head(model: "PreTrainedModel", drawn: Collection[str] = ()) -> "PreTrainedModel":
    names = {name for name, _ in model.named_parameters()}
    encoder = {name for name in names if name.startswith(f"{model.base_model_prefix}.")}
    # Weights that bring nothing of the encoder say nothing of its parts.
    new = encoder & set(drawn) if encoder - set(drawn) else set()
    set_head(model, frozenset(names - encoder | new))
    return model


@contextmanager
def _refusing_whatever_fails(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a file into one line.

    A file can be broken in more ways than transformers, safetensors and pickle have names for.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{textwrap.shorten(str(error), 250)}") from error
