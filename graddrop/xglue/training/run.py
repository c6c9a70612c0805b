"""One fine-tuning run, from the files to the scores of every language."""

import dataclasses
import math
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graddrop
from graddrop.categories import by_category
from graddrop.exemptions import head_of, set_head
from graddrop.xglue.adapters import check_installed, merge_adapters
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.data.sources import open_source
from graddrop.xglue.heads import HEADS
from graddrop.xglue.heads.model import load_model, load_tokenizer
from graddrop.xglue.methods import (
    METHODS,
    check_layers,
    freeze_for,
    parameter_groups,
)
from graddrop.xglue.scores.predictions import prediction_file, write_predictions
from graddrop.xglue.scores.text_table import mean_over_languages
from graddrop.xglue.tasks import EVAL_SPLITS
from graddrop.xglue.training.banner import banner
from graddrop.xglue.training.masks import load_made_masks, mask_data, masked_parameters
from graddrop.xglue.training.provenance import commit, versions
from graddrop.xglue.training.run_data import RunData
from graddrop.xglue.training.run_folder import RunFolder, read_json
from graddrop.xglue.training.seal import seal_note
from graddrop.xglue.training.steps import Steps, drop_prob, masked_lr
from graddrop.xglue.whole_file import check_writable, writing

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainingArguments,
    )

    from graddrop.xglue.training.trainer import ZeroShotTrainer

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
        What `result.json` holds: `task`, `config`, `data` (with the commit, for the Hub), `metric`
        (the official score's name), `scores` (split, language, metric: fraction), `mean` (split,
        metric: unweighted over languages), `missing` (languages without a file, by split),
        `steps`, `selected_step`, `history` (the Trainer's log), `masks` (`density`, `batches`,
        `batch_size`, where they are made of the training set), `parameters`, `seconds`, `commit`
        (of the code that ran, where it is a checkout), `versions`.

    Raises:
        DataError: If a file is missing, empty or malformed.
        RunFolderError: If the output folder holds something else.
        ValueError: If the model or its tokenizer cannot be loaded, a tracker, or PEFT where it is
            needed, is not installed, or the launcher has started other processes, or asks for
            another precision, than the configuration.
        OSError: If the disk is full or the folder cannot be written.
    """
    import torch
    from accelerate import PartialState

    config = config.resolved()
    _check_trackers(config.report_to)
    has_adapters = METHODS[config.method].trains == "adapters"
    if has_adapters:
        check_installed()
    folder = RunFolder(Path(config.output))
    result = folder.check(config.to_json(), resume)
    if result is not None:
        folder.tidy(config.keep_checkpoints)
        return result
    check_writable(folder.path)

    processes = PartialState(cpu=not torch.accelerator.is_available())
    if processes.num_processes != config.processes:
        raise ValueError(
            f"expected {config.processes} processes, the launcher has started "
            f"{processes.num_processes}; start as many with torchrun, or ask for "
            f"processes={processes.num_processes}"
        )
    # The first process fills the caches, the others read them; by then all have checked the folder.
    with processes.main_process_first():
        data = RunData(config, open_source(config.data, verify=config.verify))
        checkpoint = folder.last_checkpoint()
        # The tokenizer is the checkpoint's: `tiny` need not train its own again.
        tokenizer = load_tokenizer(str(checkpoint or config.model), data.texts())
        features = data.train_features(tokenizer)
    state = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
    is_trained = bool(state) and _is_over(state)
    weights = str(_selected(folder, state, config)) if is_trained else config.model
    # In a checkpoint with adapters weights have names that no model has before it gets them.
    origin = config.model if has_adapters else weights
    model = load_model(origin, data.task, tokenizer, config.seed)
    set_head(model, (folder.head() if checkpoint else None) or head_of(model))
    if _goes_by_layers(config):
        check_layers(model)
    masked_parameters(config, model)
    steps = Steps.of(config, len(features))
    arguments = _arguments(config, folder, steps, bool(data.watched))
    # Whatever the user may have got wrong has shown by now.
    processes.wait_for_everyone()
    with folder.at_work() if processes.is_main_process else nullcontext():
        if processes.is_main_process:
            folder.claim(config.to_json(), checkpoint, head_of(model))
            print(banner(config, steps, processes.device.type), file=sys.stderr, flush=True)
        processes.wait_for_everyone()
        trainer = _trainer(config, data, features, tokenizer, model, arguments, steps, checkpoint)
        if is_trained:
            trainer.state = type(trainer.state).load_from_json(f"{checkpoint}/trainer_state.json")
            if has_adapters:
                trainer._load_from_checkpoint(weights)
        else:
            if checkpoint is None:
                load_made_masks(trainer, config)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        train_seconds = trainer.seconds
        if has_adapters:  # what is scored is what is saved: a model like any other
            merge_adapters(model)
        scores = _evaluate(trainer, data, tokenizer, folder)
        result = _result(config, data, trainer, scores, train_seconds)
        _save_model(folder, trainer)
        if processes.is_main_process:
            folder.finish(result, config.keep_checkpoints)
        processes.wait_for_everyone()
    return result


def _check_trackers(names: tuple[str, ...]) -> None:
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations() if names else []
    for name in names:
        if name not in installed:
            raise ValueError(
                f"report_to names {name!r}, which is unknown or not installed; install it, or "
                f"expected one of {', '.join(installed) or 'none, as none is installed'}"
            )


def _result(
    config: FinetuneConfig,
    data: RunData,
    trainer: "ZeroShotTrainer",
    scores: dict[str, dict[str, dict[str, float]]],
    train_seconds: float,
) -> dict[str, Any]:
    assert trainer.model is not None
    state = trainer.state
    selects = config.select != "last"
    return {
        "task": data.task.name,
        "config": config.to_json(),
        "data": data.source.name,
        "metric": data.task.score,
        "scores": scores,
        "mean": {split: mean_over_languages(by_language) for split, by_language in scores.items()},
        "missing": data.missing,
        "steps": state.global_step,
        "selected_step": state.best_global_step if selects else state.global_step,
        # The Trainer's closing summary is about the last attempt only.
        "history": [row for row in state.log_history if "train_runtime" not in row],
        "masks": mask_data(config, trainer.n_inputs),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "seconds": {"train": train_seconds, "evaluate": trainer.seconds - train_seconds},
        "commit": commit(),
        "versions": versions(*(["peft"] if METHODS[config.method].trains == "adapters" else [])),
    }


def _trainer(
    config: FinetuneConfig,
    data: RunData,
    features: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel",
    arguments: "TrainingArguments",
    steps: Steps,
    checkpoint: Path | None,
) -> "ZeroShotTrainer":
    import transformers

    from graddrop.xglue.training.trainer import SkippingTrainer, ZeroShotTrainer

    freeze_for(model, METHODS[config.method].trains)
    return (SkippingTrainer if _skips_dropped(config) else ZeroShotTrainer)(
        task=data.task,
        evaluations=dict(data.evaluation_sets("dev", tokenizer, data.watched)),
        seconds_before=seal_note(checkpoint).get("seconds", 0.0) if checkpoint else 0.0,
        model=model,
        args=arguments,
        train_dataset=features,
        processing_class=tokenizer,
        data_collator=getattr(transformers, HEADS[data.task.head].collator)(tokenizer),
        optimizer_cls_and_kwargs=_optimizer(config, model, steps),
        callbacks=_callbacks(config),
    )


def _goes_by_layers(config: FinetuneConfig) -> bool:
    """Whether a method has to know which layer a parameter is in."""
    method = METHODS[config.method]
    return (
        method.trains in ("gradually", "upper-half")
        or config.knobs().get("granularity") == "layer"
        or (method.masks is not None and method.masks.categories)
    )


def _skips_dropped(config: FinetuneConfig) -> bool:
    """Whether steps leave out the backward pass of what is dropped: where nothing reads it."""
    knobs = config.knobs()
    by_wholes = knobs.get("granularity") in ("tensor", "layer") and knobs.get("site") != "update"
    return by_wholes and not config.max_grad_norm


def _optimizer(
    config: FinetuneConfig, model: "PreTrainedModel", steps: Steps
) -> tuple[type, dict[str, Any]]:
    """Return the optimizer's class and arguments as the Trainer takes them."""
    knobs = config.knobs()
    groups = parameter_groups(
        model,
        config.weight_decay,
        config.exempt,
        granularity=knobs.get("granularity", "element"),
        masked={"lr": masked_lr(config, steps)},
    )
    preset = METHODS[config.method].masks
    if preset is not None and preset.categories:
        groups = by_category(model, groups, seed=config.seed)
    return graddrop.FusedGradDropAdamW, {
        "params": groups,
        "lr": config.lr,
        **knobs,
        "drop_prob": drop_prob(config, steps),
        # 0 is the Trainer's word for no bound; the norm is logged all the same.
        "max_grad_norm": config.max_grad_norm or math.inf,
        "masked_norm": _skips_dropped(config),
    }


def _callbacks(config: FinetuneConfig) -> list["TrainerCallback"]:
    from transformers import EarlyStoppingCallback

    from graddrop.trainer import NewMaskEachEpoch
    from graddrop.unfreezing import GradualUnfreezing
    from graddrop.xglue.training.callbacks import Checkpoints

    callbacks: list[TrainerCallback] = [Checkpoints(config.save_steps)]
    if config.knobs().get("period") == "epoch":
        callbacks.append(NewMaskEachEpoch())
    if METHODS[config.method].trains == "gradually":
        callbacks.append(GradualUnfreezing(config.unfreeze_over or 1.0))
    if config.patience is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    return callbacks


def _arguments(
    config: FinetuneConfig, folder: RunFolder, steps: Steps, evaluates: bool
) -> "TrainingArguments":
    import torch

    from graddrop.xglue.training.arguments import OneDeviceArguments
    from graddrop.xglue.training.trainer import selection_metric

    assert config.lr is not None
    max_steps, eval_steps = config.max_steps, config.eval_steps
    if config.step_batch_size != config.batch_size:  # as many steps, and evaluations, all the same
        max_steps, eval_steps = steps.total, eval_steps or steps.per_epoch
    interval = "epoch" if eval_steps is None else "steps"
    return OneDeviceArguments(
        output_dir=str(folder.path),
        per_device_train_batch_size=config.step_batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        per_device_eval_batch_size=config.eval_batch_size,
        num_train_epochs=config.epochs or 1.0,
        max_steps=max_steps or -1,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        max_grad_norm=0.0,  # the optimizer clips in its own pass
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        # Otherwise bf16 is refused where there is no GPU, although CPUs have it.
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        logging_steps=config.log_steps,
        label_names=["labels"],
        # Loss that is not a number must be seen, not smoothed away.
        logging_nan_inf_filter=False,
        eval_strategy=interval if evaluates else "no",
        eval_steps=eval_steps,
        save_strategy=interval,
        save_steps=eval_steps or 500,
        load_best_model_at_end=config.select != "last",
        metric_for_best_model=selection_metric(config.select),
        greater_is_better=True,
        # Early stopping counts on where a killed attempt stopped.
        restore_callback_states_from_checkpoint=config.patience is not None,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Layers that are frozen, or skipped, give no gradient to wait for.
        ddp_find_unused_parameters=(
            METHODS[config.method].trains == "gradually" or _skips_dropped(config)
        ),
        report_to=list(config.report_to),
        **_activation_checkpointing(config),
    )


def _activation_checkpointing(config: FinetuneConfig) -> dict[str, Any]:
    """Return the Trainer's setting, whose name has changed between its versions."""
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing"
    name = name if name in names else "gradient_checkpointing"
    return {name: True} if config.activation_checkpointing else {}


def _evaluate(
    trainer: "ZeroShotTrainer",
    data: RunData,
    tokenizer: "PreTrainedTokenizerBase",
    folder: RunFolder,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return all metrics of all languages found, by split; write predictions if asked to."""
    from tqdm.auto import tqdm
    from transformers import ProgressCallback

    # One bar for all files instead of one for each.
    trainer.remove_callback(ProgressCallback)
    total = sum(len(languages) for languages in data.found.values())
    scores: dict[str, dict[str, dict[str, float]]] = {split: {} for split in EVAL_SPLITS}
    with tqdm(total=total, desc="Evaluating", unit="file", dynamic_ncols=True) as progress:
        for split in EVAL_SPLITS:
            for language, entry in data.evaluation_sets(split, tokenizer, data.found[split]):
                predictions = trainer.predict_language(entry)
                scores[split][language] = trainer.score(entry, predictions, language)
                if data.config.write_predictions and trainer.is_world_process_zero():
                    write_predictions(
                        data.task,
                        prediction_file(folder.predictions / split, data.task, language),
                        entry.examples.to_dict(),
                        predictions,
                        data.source.file(data.task, split, language),
                    )
                progress.set_postfix_str(f"{split} {language}")
                progress.update()
    return scores


def _is_over(state: dict[str, Any]) -> bool:
    """Return whether a training, by the state in its checkpoint, has reached its end."""
    # The flag is set at the last step and by early stopping.
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return bool(stopped) or state["global_step"] >= state["max_steps"]


def _selected(folder: RunFolder, state: dict[str, Any], config: FinetuneConfig) -> Path:
    """Return the checkpoint whose weights a training that is over has chosen."""
    step = state["global_step"] if config.select == "last" else state["best_global_step"]
    return folder.checkpoint(step)


def _save_model(folder: RunFolder, trainer: "ZeroShotTrainer") -> None:
    """Write the final weights under another name first, so that `model/` is whole or absent."""
    draft = folder.path / "model.tmp"
    # All processes take part: with sharded weights each one holds a piece.
    with writing(draft):
        trainer.save_model(str(draft))
    if trainer.is_world_process_zero():
        shutil.rmtree(folder.model, ignore_errors=True)
        draft.rename(folder.model)
