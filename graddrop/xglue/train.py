"""One fine-tuning run, from the files to the scores of every language."""

import platform
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graddrop
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.data import evaluation_languages, load_split
from graddrop.xglue.encode import encode
from graddrop.xglue.heads import HEADS
from graddrop.xglue.layout import DataError
from graddrop.xglue.methods import METHODS, parameter_groups
from graddrop.xglue.model import load_model, load_tokenizer
from graddrop.xglue.runfolder import RunFolder, read_json, seal_note
from graddrop.xglue.tasks import EVAL_SPLITS, TRAIN_LANGUAGE, Task, get_task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from graddrop.xglue.trainer import EvaluationSet, ZeroShotTrainer

__all__ = ["FinetuneConfig", "finetune"]


def finetune(config: FinetuneConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train on English, evaluate zero-shot in every language found.

    A run that was killed and is started again with `resume` ends with the same weights and scores,
    to the last bit, as one that was not.

    Args:
        config: What to do.
        resume: Go on with an earlier attempt in the same output folder, or return its result if it
            has finished. A folder without an attempt is begun.

    Returns:
        What `result.json` holds: `task`, `config`, `metric` (the official score's name), `scores`
        (split, language, metric: fraction), `mean` (split, metric: unweighted over languages),
        `missing` (languages without a file, by split), `steps`, `selected_step`, `history` (the
        Trainer's log), `parameters`, `seconds`, `versions`.

    Raises:
        DataError: If a file is missing, empty or malformed.
        RunFolderError: If the output folder holds something else.
        ValueError: If the model or its tokenizer cannot be loaded.
        OSError: If the disk is full or the folder cannot be written.
    """
    config = config.resolved()
    task = get_task(config.task)
    folder = RunFolder(Path(config.output))
    result = folder.check(config.to_json(), resume)
    if result is not None:
        return result

    data = _Data(config, task)
    checkpoint = folder.last_checkpoint()
    state = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
    is_trained = bool(state) and state["global_step"] >= state["max_steps"]
    # The tokenizer is the checkpoint's: `tiny` need not train its own again.
    name = str(checkpoint) if checkpoint else config.model
    tokenizer = load_tokenizer(name, _texts(data.train))
    weights = str(_selected(folder, state, config)) if is_trained else config.model
    model = load_model(weights, task, tokenizer, config.seed)
    features = data.train_features(tokenizer)
    # Whatever the user may have got wrong has shown by now.
    folder.claim(config.to_json())
    trainer = _trainer(config, data, features, tokenizer, model, folder, checkpoint)
    if is_trained:
        trainer.state = type(trainer.state).load_from_json(f"{checkpoint}/trainer_state.json")
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    train_seconds = trainer.seconds
    started = time.perf_counter()
    scores = _evaluate(trainer, data, tokenizer)
    result = {
        "task": task.name,
        "config": config.to_json(),
        "metric": task.score,
        "scores": scores,
        "mean": {split: _mean(by_language) for split, by_language in scores.items()},
        "missing": data.missing,
        "steps": trainer.state.global_step,
        "selected_step": (
            trainer.state.best_global_step if config.select != "last" else trainer.state.global_step
        ),
        # The Trainer's closing summary is about the last attempt only.
        "history": [row for row in trainer.state.log_history if "train_runtime" not in row],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {"train": train_seconds, "evaluate": time.perf_counter() - started},
        "versions": _versions(),
    }
    _save_model(folder, trainer)
    if trainer.is_world_process_zero():
        folder.finish(result, config.keep_checkpoints)
    trainer.accelerator.wait_for_everyone()
    return result


class _Data:
    """The examples of a run; what is missing or malformed shows at construction if it can."""

    def __init__(self, config: FinetuneConfig, task: Task) -> None:
        self.config = config
        self.task = task
        self.root = Path(config.data)
        self.found: dict[str, list[str]] = {}
        self.missing: dict[str, list[str]] = {}
        self.train = load_split(task, self.root, "train", limit=config.limit_train)
        for split in EVAL_SPLITS:
            self.found[split], self.missing[split] = evaluation_languages(
                task, self.root, split, config.languages
            )
        if config.select != "last" and TRAIN_LANGUAGE not in self.found["dev"]:
            raise DataError(
                f"{self.root / task.path('dev')}: not among the languages found; select="
                f"{config.select} picks the checkpoint by it, select=last needs none"
            )

    def evaluation_sets(
        self,
        split: str,
        tokenizer: "PreTrainedTokenizerBase",
        languages: tuple[str, ...] | None = None,
    ) -> Iterator[tuple[str, "EvaluationSet"]]:
        """Yield languages with their examples and inputs, all that were found unless named."""
        from graddrop.xglue.trainer import EvaluationSet

        for language in self.found[split] if languages is None else languages:
            examples = load_split(self.task, self.root, split, language, self.config.limit_eval)
            yield language, EvaluationSet(examples, self._encode(examples, tokenizer, True))

    def train_features(self, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
        """Return the inputs of the training set."""
        return self._encode(self.train, tokenizer, False)

    def _encode(
        self, examples: "Dataset", tokenizer: "PreTrainedTokenizerBase", by_length: bool
    ) -> "Dataset":
        assert self.config.max_length is not None
        return encode(self.task, examples, tokenizer, self.config.max_length, by_length=by_length)


def _trainer(
    config: FinetuneConfig,
    data: _Data,
    features: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel",
    folder: RunFolder,
    checkpoint: Path | None,
) -> "ZeroShotTrainer":
    import transformers

    from graddrop.xglue.callbacks import Checkpoints
    from graddrop.xglue.trainer import ZeroShotTrainer

    # Averaging needs every language; strict zero-shot looks at English alone.
    every = config.eval_all or config.select == "average-dev"
    during = None if every else tuple(set(data.found["dev"]) & {TRAIN_LANGUAGE})
    return ZeroShotTrainer(
        task=data.task,
        evaluations=dict(data.evaluation_sets("dev", tokenizer, during)),
        seconds_before=seal_note(checkpoint)["seconds"] if checkpoint else 0.0,
        model=model,
        args=_arguments(config, folder),
        train_dataset=features,
        processing_class=tokenizer,
        data_collator=getattr(transformers, HEADS[data.task.head].collator)(tokenizer),
        optimizer_cls_and_kwargs=_optimizer(config, model),
        callbacks=[Checkpoints(config.save_steps)],
    )


def _optimizer(config: FinetuneConfig, model: "PreTrainedModel") -> tuple[type, dict[str, Any]]:
    """Return the optimizer's class and arguments as the Trainer takes them."""
    return graddrop.FusedGradDropAdamW, {
        "params": parameter_groups(model, config.weight_decay, config.exempt),
        "lr": config.lr,
        "drop_prob": config.drop_prob,
        "seed": config.seed,
        **METHODS[config.method].knobs,
    }


def _arguments(config: FinetuneConfig, folder: RunFolder) -> "TrainingArguments":
    import torch
    from transformers import TrainingArguments

    from graddrop.xglue.trainer import selection_metric

    assert config.batch_size is not None and config.lr is not None
    interval = "epoch" if config.eval_steps is None else "steps"
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        per_device_eval_batch_size=config.eval_batch_size,
        num_train_epochs=config.epochs or 1.0,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        seed=config.seed,
        logging_steps=config.log_steps,
        # Loss that is not a number must be seen, not smoothed away.
        logging_nan_inf_filter=False,
        eval_strategy=interval,
        eval_steps=config.eval_steps,
        save_strategy=interval,
        save_steps=config.eval_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=config.select != "last",
        metric_for_best_model=selection_metric(config.select),
        greater_is_better=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )


def _evaluate(
    trainer: "ZeroShotTrainer", data: _Data, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, dict[str, dict[str, float]]]:
    """Return all metrics of all languages found, by split."""
    from tqdm.auto import tqdm
    from transformers import ProgressCallback

    # One bar for all files instead of one for each.
    trainer.remove_callback(ProgressCallback)
    total = sum(len(languages) for languages in data.found.values())
    scores: dict[str, dict[str, dict[str, float]]] = {split: {} for split in EVAL_SPLITS}
    with tqdm(total=total, desc="Evaluating", unit="file", dynamic_ncols=True) as progress:
        for split in EVAL_SPLITS:
            for language, entry in data.evaluation_sets(split, tokenizer):
                predictions = trainer.predict_language(entry)
                scores[split][language] = trainer.score(entry, predictions, language)
                progress.set_postfix_str(f"{split} {language}")
                progress.update()
    return scores


def _texts(examples: "Dataset") -> Iterator[str]:
    """Yield every string of the examples, for training a tokenizer."""
    for example in examples:
        for value in example.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield " ".join(value)


def _selected(folder: RunFolder, state: dict[str, Any], config: FinetuneConfig) -> Path:
    """Return the checkpoint whose weights a training that is over has chosen."""
    step = state["global_step"] if config.select == "last" else state["best_global_step"]
    return folder.checkpoints / f"checkpoint-{step}"


def _save_model(folder: RunFolder, trainer: "ZeroShotTrainer") -> None:
    """Write the final weights under another name first, so that `model/` is whole or absent."""
    draft = folder.path / "model.tmp"
    # All processes take part: with sharded weights each one holds a piece.
    trainer.save_model(str(draft))
    if trainer.is_world_process_zero():
        shutil.rmtree(folder.model, ignore_errors=True)
        draft.rename(folder.model)


def _mean(by_language: dict[str, dict[str, float]]) -> dict[str, float]:
    if not by_language:
        return {}
    rows = list(by_language.values())
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "accelerate", "datasets", "tokenizers")
    return {
        "python": platform.python_version(),
        "graddrop": graddrop.__version__,
        **{name: version(name) for name in packages},
    }
