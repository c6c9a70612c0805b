"""A very small XLM-R, pretrained by masked-language modelling on raw text files.

It stands in for XLM-R where the real weights are out of reach: same architecture, same kind of
pretraining (Conneau et al., 2020, arXiv 1911.02116), thousands of times smaller.
"""

import dataclasses
import math
import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads.model import tiny_config, train_tokenizer
from graddrop.xglue.training.run_folder import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments, XLMRobertaForMaskedLM

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


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train a tokenizer, then a model, and write both as one model folder.

    Args:
        config: What to do.

    Returns:
        What `pretrain.json` in the folder holds: `config`, `lines` and `bytes` of raw text per
        language, `parameters`, `steps`, `history` (the Trainer's log), `seconds`.

    Raises:
        FileExistsError: If the output exists.
        FileNotFoundError: If the folder holds no `*.txt`.
        ValueError: If a text is empty or not UTF-8, or a launcher has started several processes.
        OSError: If the output cannot be written; nothing is left behind then.
    """
    import transformers

    if (n_processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(f"expected one process to pretrain, the launcher started {n_processes}")
    output = Path(config.output)
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another folder or remove it")
    texts = read_texts(Path(config.text))
    lines = [line for some in smoothed(texts, config.smoothing).values() for line in some]
    transformers.set_seed(config.seed)
    tokenizer = train_tokenizer(lines, config.vocab_size)
    model = _hidden_words_model(config, len(tokenizer))
    draft = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        started = time.perf_counter()
        trainer = transformers.Trainer(
            model=model,
            args=_arguments(config, draft),
            train_dataset=in_batches(_features(lines, tokenizer, config.max_length), config),
            data_collator=transformers.DataCollatorForLanguageModeling(
                tokenizer, mlm_probability=config.mask_prob
            ),
            optimizer_cls_and_kwargs=_optimizer(config),
        )
        trainer.train()
        result = {
            "config": dataclasses.asdict(config),
            "lines": {language: len(some) for language, some in texts.items()},
            "bytes": {
                language: sum(len(line.encode()) + 1 for line in some)
                for language, some in texts.items()
            },
            "parameters": model.num_parameters(),
            "steps": trainer.state.global_step,
            "history": trainer.state.log_history,
            "seconds": time.perf_counter() - started,
        }
        plain = transformers.XLMRobertaForMaskedLM(model.config)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        write_json(draft / RESULT_FILE, result)
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return result


def read_texts(folder: Path) -> dict[str, list[str]]:
    """Read raw text.

    Args:
        folder: Folder with one `<language>.txt` per language.

    Returns:
        The lines that are not blank, by language in alphabetical order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one has no lines or is not UTF-8.
    """
    texts = {}
    for file in sorted(folder.glob("*.txt")):
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected UTF-8 ({error})") from error
        texts[file.stem] = [line for line in content.split("\n") if line.strip()]
        if not texts[file.stem]:
            raise ValueError(f"{file}: expected a sentence per line, found none; remove the file")
    if not texts:
        raise FileNotFoundError(f"{folder}: expected files named <language>.txt, found none")
    return texts


def smoothed(texts: Mapping[str, list[str]], exponent: float) -> dict[str, list[str]]:
    """Repeat the lines of small languages, so that they are not drowned (XLM-R, section 3.1).

    Args:
        texts: Lines by language.
        exponent: a in (0, 1]; 1 leaves the sizes alone, towards 0 they become equal.

    Returns:
        n^a N^(1-a) lines of a language that has n, where N is that of the largest.
    """
    largest = max(map(len, texts.values()))
    return {
        language: list(
            islice(cycle(lines), round(len(lines) ** exponent * largest ** (1 - exponent)))
        )
        for language, lines in texts.items()
    }


def in_batches(
    features: Sequence[dict[str, list[int]]], config: PretrainConfig
) -> list[dict[str, list[int]]]:
    """Order examples so that a batch needs little padding and batches come in any order.

    The Trainer's own grouping by length goes from the longest to the shortest again and again,
    which a model under a high learning rate follows with its loss.

    Args:
        features: Examples with `input_ids`.
        config: `epochs`, `batch_size`, `seed`.

    Returns:
        The examples of all epochs, one after the other as they are to be read.
    """
    rng = random.Random(config.seed)
    size = config.batch_size
    wanted = max(1, round(config.epochs * len(features) / size))
    batches: list[list[dict[str, list[int]]]] = []
    while len(batches) < wanted:
        order = rng.sample(features, len(features))
        pools = [order[at : at + 50 * size] for at in range(0, len(order), 50 * size)]
        epoch = []
        for pool in pools:
            pool.sort(key=lambda example: len(example["input_ids"]))
            epoch += [pool[at : at + size] for at in range(0, len(pool), size)]
        # One incomplete batch would shift all that follow.
        epoch = [batch for batch in epoch if len(batch) == size] or [order]
        batches += rng.sample(epoch, len(epoch))
    return [example for batch in batches[:wanted] for example in batch]


def _features(
    lines: list[str], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[dict[str, list[int]]]:
    encoded = tokenizer(
        lines,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_special_tokens_mask=True,
    )
    names = ("input_ids", "special_tokens_mask")
    return [
        dict(zip(names, row, strict=True)) for row in zip(*map(encoded.get, names), strict=True)
    ]


def _hidden_words_model(config: PretrainConfig, vocab_size: int) -> "XLMRobertaForMaskedLM":
    """Return XLM-R whose vocabulary is scored only where a word is hidden.

    Elsewhere there is no loss; in a narrow model those scores are half of all arithmetic.
    """
    from torch.nn.functional import cross_entropy
    from transformers import XLMRobertaForMaskedLM
    from transformers.modeling_outputs import MaskedLMOutput

    class HiddenWordsModel(XLMRobertaForMaskedLM):
        def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> MaskedLMOutput:
            hidden = labels != -100
            states = self.roberta(input_ids, attention_mask).last_hidden_state
            total = cross_entropy(self.lm_head(states[hidden]), labels[hidden], reduction="sum")
            # A batch of short lines may by chance hide nothing.
            return MaskedLMOutput(loss=total / hidden.sum().clamp(min=1))

    architecture = tiny_config(vocab_size)
    architecture.update(
        {
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.hidden_size // HEAD_SIZE,
            "intermediate_size": 4 * config.hidden_size,
            # A model that sees each line a few times has nothing to memorise.
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    )
    return HiddenWordsModel(architecture)


def _optimizer(config: PretrainConfig) -> tuple[type, dict[str, Any]]:
    from graddrop import FusedGradDropAdamW

    # The short memory of the second moment is RoBERTa's: without it high rates diverge at times.
    values = {"lr": config.lr, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
    return FusedGradDropAdamW, {**values, "drop_prob": 0.0}


def _arguments(config: PretrainConfig, draft: Path) -> "TrainingArguments":
    import torch

    from graddrop.xglue.training.arguments import OneDeviceArguments

    return OneDeviceArguments(
        output_dir=str(draft),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=1,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        seed=config.seed,
        logging_steps=50,
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )
