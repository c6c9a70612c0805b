"""What a fine-tuning run is asked to do."""

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from typing import Any

from graddrop.exemptions import EXEMPTIONS
from graddrop.xglue.methods import METHODS, drop_probs_of
from graddrop.xglue.names import meant
from graddrop.xglue.tasks import get_task

TINY = "tiny"
"""Name of the model that is made on the spot instead of loaded."""

EVALUATIONS = ("dev", "en-dev", "test")
SELECTIONS = ("en-dev", "average-dev", "last")
RECIPES = ("base", "large")
PRECISIONS = ("fp32", "bf16", "fp16")

DROP_SCHEDULES = ("epochs", "linear", "cosine")

KNOBS = (
    *("drop_schedule", "granularity", "period", "site", "rescale", "exempt"),
    *("mask_batches", "unfreeze_over"),
)
"""Settings that belong to a method: they may differ between the two runs of a pair."""

BYSTANDERS = frozenset(
    ("eval_batch_size", "log_steps", "save_steps", "report_to", "keep_checkpoints")
    + ("write_predictions", "eval_all")
)
"""Settings that neither make a run another one nor change its scores."""


@dataclass(frozen=True)
class FinetuneConfig:
    """One run: a task, a model, a method.

    None means what the task's published recipe says, or what the method's preset says.

    Args:
        task: Name of a task.
        data: Where the data come from, see `graddrop.xglue.data.sources.open_source`.
        output: Folder of the run.
        model: Name on the Hub, folder, or `tiny` (random weights, tokenizer trained on the spot).
        method: Name of a method.
        drop_prob: Probability that an entry's gradient is dropped, in [0, 1]; several of them
            change over the training as `drop_schedule` says.
        drop_schedule: `epochs`: one drop probability for each epoch, the last one for those beyond;
            `linear` or `cosine`: from the first of two to the second over the training.
        seed: Seed in [0, 2**32) of the weights, the data order, the dropout, and the masks.
        languages: Languages to evaluate; none means all that are found.
        evaluate: What the final weights are scored on: `dev` or `test` of all these languages,
            `en-dev` of English alone. Other files are not read, but for the dev sets of training.
        recipe: Size of the models that the task's published recipe is for: `base` or `large`.
        epochs: Passes over the training set.
        max_steps: Optimizer steps, in place of `epochs`.
        batch_size: Examples per optimizer step on each device.
        accumulation: Micro-batches that make up a batch; must divide `batch_size`.
        eval_batch_size: Examples per batch of evaluation on each device.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, not applied to biases and norms.
        warmup_steps: Optimizer steps of linear warm-up.
        max_grad_norm: Bound of the unmasked gradients' norm; 0 sets none.
        max_length: Sub-words per model input.
        precision: `fp32`, or mixed precision with `bf16` or `fp16`.
        processes: Processes, with a device each, that share a step; None means as many as the
            launcher has started, any other number is refused.
        activation_checkpointing: Recompute activations in the backward pass to save memory.
        exempt: Parameters that are never masked: some of `head`, `embeddings`, `norms`, `biases`.
        granularity: What shares one decision: `element`, `row`, `tensor` or `layer`.
        period: How long a mask lives: `step`, `epoch`, `run`, or a number of steps.
        site: Where the mask acts: `grad`, `update` or `freeze`.
        rescale: Whether what is kept is scaled by the inverse of the keep probability.
        mask_batches: Batches of the training set, of one example each for `fish-mask`, of whose
            gradients a method makes the masks that it loads; None means as many as published, for
            `child-tuning-d` one pass over the training set, which is the most for all.
        unfreeze_over: Share of the training, in (0, 1], over which gradual unfreezing releases the
            layers; None means all of it.
        select: Whose weights are kept: the best checkpoint by English dev (strictly zero-shot), by
            dev averaged over languages (as the published baseline does), or the last.
        patience: Evaluations without a better score after which training stops; None never stops.
        eval_all: Evaluate every language on dev during training, for learning curves.
        eval_steps: Optimizer steps between evaluations; None means once per epoch.
        save_steps: Optimizer steps between checkpoints beside those of evaluations.
        log_steps: Optimizer steps between entries of the learning curve.
        limit_train: Training examples to use; None means all.
        limit_eval: Examples to use of each evaluation file; None means all.
        report_to: Trackers that the Trainer logs to, such as `tensorboard`.
        keep_checkpoints: Keep the Trainer's checkpoints when the run has finished.
        write_predictions: Write predictions in the official format, see
            `graddrop.xglue.scores.predictions`.
        verify: Compare the archive's checksum before it is used.

    Raises:
        ValueError: If a value is out of its range.
        TypeError: If a knob of the optimizer is of the wrong type.
    """

    task: str
    data: str
    output: str
    model: str = TINY
    method: str = "graddrop"
    drop_prob: float | tuple[float, ...] | None = None
    drop_schedule: str = "epochs"
    seed: int = 0
    languages: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ("dev", "test")
    recipe: str = "base"
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    accumulation: int = 1
    eval_batch_size: int = 64
    lr: float | None = None
    weight_decay: float = 0.0
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    max_length: int | None = None
    precision: str = "fp32"
    processes: int | None = None
    activation_checkpointing: bool = False
    exempt: tuple[str, ...] = ()
    granularity: str | None = None
    period: str | int | None = None
    site: str | None = None
    rescale: bool | None = None
    mask_batches: int | None = None
    unfreeze_over: float | None = None
    select: str = "en-dev"
    patience: int | None = None
    eval_all: bool = False
    eval_steps: int | None = None
    save_steps: int | None = None
    log_steps: int = 10
    limit_train: int | None = None
    limit_eval: int | None = None
    report_to: tuple[str, ...] = ()
    keep_checkpoints: bool = False
    write_predictions: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        get_task(self.task).check_languages(self.languages)
        _one_of("method", self.method, tuple(METHODS))
        _one_of("select", self.select, SELECTIONS)
        _one_of("recipe", self.recipe, RECIPES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("drop_schedule", self.drop_schedule, DROP_SCHEDULES)
        for name in self.evaluate:
            _one_of("evaluate", name, EVALUATIONS)
        if not self.evaluate or {"dev", "en-dev"} <= set(self.evaluate):
            raise ValueError(
                "evaluate must name dev or en-dev, or test, or one of these and test; "
                f"got {' '.join(self.evaluate) or 'nothing'}"
            )
        for kind in self.exempt:
            _one_of("exempt", kind, EXEMPTIONS)
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in [0, 2**32), got {self.seed}")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        self._check_drop_prob()
        if self.unfreeze_over is not None and not 0 < self.unfreeze_over <= 1:
            raise ValueError(f"unfreeze_over must be in (0, 1], got {self.unfreeze_over}")
        if self.patience is not None and self.select == "last":
            raise ValueError("patience needs a score to watch; choose another select than last")
        if self.write_predictions and self.limit_eval is not None:
            raise ValueError("write_predictions needs whole files; leave out limit_eval")
        if self.batch_size is not None and self.step_batch_size % self.accumulation:
            raise ValueError(
                f"accumulation must divide batch_size, got {self.accumulation} "
                f"for {self.step_batch_size}"
            )
        self._check_masks()
        self._check_knobs()

    def _check_masks(self) -> None:
        """Refuse settings that the method's kind of masks does not have."""
        masks = METHODS[self.method].masks
        if masks is not None and masks.made is not None:
            for name in ("granularity", "period", "rescale"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"method {self.method} makes masks once and loads them; leave out {name}"
                    )
        elif self.mask_batches is not None:
            raise ValueError(f"method {self.method} makes no masks; leave out mask_batches")
        if masks is not None and masks.categories and self.granularity not in (None, "tensor"):
            raise ValueError(f"method {self.method} goes by tensors; leave out granularity")

    def _check_knobs(self) -> None:
        """Let the optimizer check its own knobs; some need a parameter in a layer."""
        import torch

        from graddrop.optimizer import FusedGradDropAdamW

        probe = ("layer.0", torch.nn.Parameter(torch.empty(1)))
        FusedGradDropAdamW([probe], weight_decay=self.weight_decay, **self.knobs())

    def _check_drop_prob(self) -> None:
        method, values = METHODS[self.method], self.drop_probs
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"drop_prob must be in [0, 1], got {value}")
        if any(values) and not method.drop_prob:
            raise ValueError(f"method {self.method} drops nothing; leave out drop_prob")
        if isinstance(self.drop_prob, tuple) and not values:
            raise ValueError("drop_prob: expected a number, or one for each epoch, got none")
        if len(values) > 1 and (method.masks is None or method.masks.made is not None):
            raise ValueError(f"method {self.method} takes one drop_prob for the whole training")
        if self.drop_schedule != "epochs" and len(values) != 2:
            raise ValueError(
                f"drop_schedule {self.drop_schedule} goes from one drop_prob to another, "
                f"got {len(values)} of them"
            )

    @property
    def drop_probs(self) -> tuple[float, ...]:
        """None, one drop probability for the whole training, or several."""
        return drop_probs_of(self.drop_prob)

    @property
    def step_batch_size(self) -> int:
        """Examples per optimizer step on each device, of which `batch-matched` takes a part.

        Raises:
            ValueError: If that part is no whole number.
        """
        assert self.batch_size is not None
        if not METHODS[self.method].shrinks_batch:
            return self.batch_size
        keep = 1 - (self.drop_probs or METHODS[self.method].drop_probs)[0]
        size = round(keep * self.batch_size)
        if size < 1 or not math.isclose(size, keep * self.batch_size):
            raise ValueError(
                f"batch-matched takes (1 - drop_prob) * batch_size examples, {keep:g} * "
                f"{self.batch_size} here; choose numbers that make it a whole one"
            )
        return size

    def resolved(self) -> "FinetuneConfig":
        """Return the same run with what recipe, method and launcher say filled in."""
        recipe = get_task(self.task).recipe_for(self.recipe)
        method = METHODS[self.method]
        chosen: dict[str, Any] = {
            name: getattr(recipe, name)
            for name in ("lr", "batch_size", "max_length")
            if getattr(self, name) is None
        }
        if self.epochs is None and self.max_steps is None:
            chosen["epochs"] = recipe.epochs
        if self.drop_prob is None:
            chosen["drop_prob"] = method.drop_prob
        if self.mask_batches is None and method.masks and method.masks.made:
            chosen["mask_batches"] = method.masks.made.n_losses
        if self.processes is None:
            chosen["processes"] = int(os.environ.get("WORLD_SIZE", 1))
        return dataclasses.replace(self, **chosen)

    def knobs(self) -> dict[str, Any]:
        """Return the optimizer's keyword arguments for masking: the method's, then the run's.

        Of several drop probabilities it is the first; where masks are made none is drawn.
        """
        method = METHODS[self.method]
        drop_prob = (self.drop_probs or method.drop_probs)[0]
        names = ("granularity", "period", "site", "rescale")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        masks = method.masks
        drawn = 0.0 if masks is None or masks.made is not None else drop_prob
        preset = {} if masks is None else masks.knobs
        return {"drop_prob": drawn, **preset, "seed": self.seed, **chosen}

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for, as JSON has it.

        Not the output's place, so that folders can be moved. Data and model are as they were
        spelt: what lies there by now does not make it another run.
        """
        values = dataclasses.asdict(self)
        del values["output"], values["verify"]
        return json.loads(json.dumps(values))


_POSITIVE = (
    "epochs",
    "max_steps",
    "batch_size",
    "accumulation",
    "eval_batch_size",
    "lr",
    "max_length",
    "processes",
    "eval_steps",
    "save_steps",
    "log_steps",
    "limit_train",
    "limit_eval",
    "mask_batches",
    "patience",
)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"unknown {name} {value!r}; expected one of {', '.join(choices)}{meant(value, choices)}"
        )
