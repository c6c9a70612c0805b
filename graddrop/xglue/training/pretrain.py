"""Pretraining of a very small XLM-R, by masked-language modelling on raw text files.

It stands in for XLM-R where the real weights are out of reach: same architecture, same kind of
pretraining (Conneau et al., 2020, arXiv 1911.02116), thousands of times smaller.
"""

import dataclasses
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graddrop.xglue.heads.model import train_tokenizer
from graddrop.xglue.training.hidden_words import hidden_words_model
from graddrop.xglue.training.pretrain_config import RESULT_FILE, PretrainConfig
from graddrop.xglue.training.raw_text import read_texts, smoothed
from graddrop.xglue.whole_file import check_writable, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments


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
    check_writable(output)
    texts = read_texts(Path(config.text))
    lines = [line for some in smoothed(texts, config.smoothing).values() for line in some]
    transformers.set_seed(config.seed)
    tokenizer = train_tokenizer(lines, config.vocab_size)
    model = hidden_words_model(config, len(tokenizer))
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
