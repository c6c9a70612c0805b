"""transformers' Trainer with zero-shot scores for evaluation and sealed checkpoints."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from graddrop.trainer import SkipDroppedMixin
from graddrop.xglue.heads import HEADS
from graddrop.xglue.heads.token import IGNORED
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.tasks import TRAIN_LANGUAGE, Task
from graddrop.xglue.training.callbacks import NewOrderEachEpoch
from graddrop.xglue.training.order import LengthSampler
from graddrop.xglue.training.run_data import EvaluationSet
from graddrop.xglue.training.run_folder import RunFolder
from graddrop.xglue.training.seal import seal
from graddrop.xglue.whole_file import writing


class ZeroShotTrainer(Trainer):
    """A Trainer whose evaluation scores a task in several languages.

    The loss of an optimizer step is the mean over all labels of its batch, in however many
    micro-batches and on however many devices it is computed. The training set is read in the order
    of `graddrop.xglue.training.order`.

    Args:
        task: Row of the task table.
        evaluations: What is evaluated during training, by language.
        seconds_before: Seconds of training in earlier attempts at the same run.
        **kwargs: Arguments of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        task: Task,
        evaluations: Mapping[str, EvaluationSet],
        seconds_before: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.task = task
        super().__init__(
            # The heads' own loss is a mean over the micro-batch at hand, whose labels may be few.
            compute_loss_func=self._loss,
            preprocess_logits_for_metrics=HEADS[task.head].reduce,
            # The Trainer wants to be given something to evaluate; `evaluate` is overridden.
            eval_dataset={name: entry.features for name, entry in evaluations.items()},
            **kwargs,
        )
        n_micro_batches = self.args.gradient_accumulation_steps * self.args.world_size
        assert self.train_dataset is not None and self.args.data_seed is not None
        self._sampler = LengthSampler(
            [len(ids) for ids in self.train_dataset["input_ids"]],
            # Micro-batches and devices share out one batch, so that its examples stay the same.
            self.args.train_batch_size * n_micro_batches,
            self.args.data_seed,
        )
        self.add_callback(NewOrderEachEpoch(self._sampler))
        self.evaluations = evaluations
        self._seconds_before = seconds_before
        self._started = time.perf_counter()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
        """Leave the norm to the optimizer, which finds it in the step that is still to come."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the norm of the last step's gradients beside the loss."""
        if "loss" in logs:
            wrapper: Any = self.optimizer  # accelerate's
            logs = {**logs, "grad_norm": wrapper.optimizer.grad_norm.item()}
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        return self._sampler

    def _loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        """Return this micro-batch's part of the mean over all labels of the optimizer step."""
        logits = HEADS[self.task.head].class_logits(outputs)
        total = cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        # A window may hold no word of its own; where all are such there is nothing to learn.
        return total / num_items_in_batch.clamp(min=1)

    def losses(self, batch_size: int, n_batches: int) -> Iterator[torch.Tensor | Iterator[Any]]:
        """Yield the losses of the first batches of the first epoch's order, on every process.

        A batch that is larger than a micro-batch comes in parts, of a micro-batch each, which add
        up to the mean over all of its labels.

        Args:
            batch_size: Examples in each of them, but for the last one of the training set.
            n_batches: How many; there are no more than make one pass.
        """
        trainer: Any = self
        dataset = trainer._remove_unused_columns(trainer.train_dataset, "training")
        order = list(self._sampler)
        n_rows = self.args.per_device_train_batch_size
        for begin in range(0, min(n_batches * batch_size, len(order)), batch_size):
            rows = [dataset[index] for index in order[begin : begin + batch_size]]
            collated = [
                trainer._prepare_inputs(trainer.data_collator(rows[i : i + n_rows]))
                for i in range(0, len(rows), n_rows)
            ]
            labels = [inputs.pop("labels") for inputs in collated]
            n_labels = torch.stack([(part != IGNORED).sum() for part in labels]).sum()
            parts = (
                self._loss(trainer.model(**inputs), part, n_labels)
                for inputs, part in zip(collated, labels, strict=True)
            )
            yield parts if len(labels) > 1 else next(parts)

    @property
    def n_inputs(self) -> int:
        """Model inputs in the training set."""
        return len(self._sampler)

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation, those of earlier attempts included."""
        return self._seconds_before + time.perf_counter() - self._started

    def predict_language(self, entry: EvaluationSet) -> list[Any]:
        """Return one prediction per example."""
        output = self.predict(entry.features)
        decode = HEADS[self.task.head].decode
        return decode(self.task, entry.examples, entry.features, output.predictions)

    def score(
        self, entry: EvaluationSet, predictions: list[Any], language: str
    ) -> dict[str, float]:
        """Return the task's metrics as fractions, the official score first."""
        columns = entry.examples.to_dict()
        return {name: METRICS[name](columns, predictions, language) for name in self.task.metrics}

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the languages given at construction.

        Returns:
            `eval_LANGUAGE` with the official score for each of them, `eval_average` with the
            unweighted mean of those whose dev set does not leak, if there is one.
        """
        scores = {
            language: self.score(entry, self.predict_language(entry), language)[self.task.score]
            for language, entry in self.evaluations.items()
        }
        metrics = {f"{metric_key_prefix}_{language}": score for language, score in scores.items()}
        judges = [score for language, score in scores.items() if language not in self.task.leaking]
        if judges:
            metrics[f"{metric_key_prefix}_average"] = sum(judges) / len(judges)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint, sealed once all processes have written their part of it.

        Older ones go only then, other than the best one: there is a whole one at any moment.
        """
        assert self.args.output_dir is not None
        folder = RunFolder(Path(self.args.output_dir))
        checkpoint = folder.checkpoint(self.state.global_step)
        with writing(checkpoint):
            super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(checkpoint, {"seconds": self.seconds})
            best = self.state.best_global_step
            folder.discard_checkpoints([checkpoint, *([folder.checkpoint(best)] if best else [])])


class SkippingTrainer(SkipDroppedMixin, ZeroShotTrainer):
    """The same training without the backward pass of what masks drop as a whole."""


def selection_metric(select: str) -> str | None:
    """Return the metric of `ZeroShotTrainer.evaluate` that picks the checkpoint.

    Args:
        select: `en-dev`, `average-dev` or `last`.
    """
    return {"en-dev": f"eval_{TRAIN_LANGUAGE}", "average-dev": "eval_average", "last": None}[select]
