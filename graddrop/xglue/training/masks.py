"""Masks that a method makes of the training set's gradients, before the first step."""

import math
from typing import TYPE_CHECKING, Any

from graddrop.exemptions import exempt_names, head_of, owned_parameters
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.methods import METHODS

if TYPE_CHECKING:
    from torch.nn import Parameter
    from transformers import PreTrainedModel

    from graddrop.xglue.training.trainer import ZeroShotTrainer


def mask_data(config: FinetuneConfig, inputs: int) -> dict[str, Any] | None:
    """Return of what a run makes its masks.

    Args:
        config: The run, with its recipe filled in.
        inputs: Model inputs in its training set.

    Returns:
        `density` (what the masks keep), `batches`, `batch_size`; None if it makes none.
    """
    masks = METHODS[config.method].masks
    if masks is None or masks.made is None:
        return None
    size = 1 if masks.made.losses == "one example" else config.step_batch_size
    batches = math.ceil(inputs / size)
    return {
        "density": 1 - config.drop_probs[0],
        "batches": min(batches, config.mask_batches or batches),
        "batch_size": size,
    }


def masked_parameters(config: FinetuneConfig, model: "PreTrainedModel") -> dict[str, "Parameter"]:
    """Return the parameters of which a run makes masks, by name.

    Args:
        config: The run.
        model: That will be trained.

    Raises:
        ValueError: If the run's method makes masks, and there is no parameter for it.
    """
    masks = METHODS[config.method].masks
    if masks is None or masks.made is None:
        return {}
    left_out = head_of(model) | exempt_names(model, config.exempt)
    found = {
        name: param
        for name, param, _ in owned_parameters(model)
        if masks.made.within in name and name not in left_out
    }
    if not found:
        raise ValueError(
            f"method {config.method} masks parameters with {masks.made.within!r} in their names, "
            f"of which {type(model).__name__} has none beside its head and what is exempt; choose "
            "another method or model"
        )
    return found


def load_made_masks(trainer: "ZeroShotTrainer", config: FinetuneConfig) -> None:
    """Make a run's masks, if its method makes any, and load them into its optimizer.

    The head is trained whole, and so is what is exempt. Weights are those that the run begins with,
    in full precision and without dropout; so masks depend on the seed, the batches and their size
    alone, not on micro-batches or processes. A checkpoint has them: a run that goes on from one
    makes none.

    Args:
        trainer: Which has not trained yet.
        config: The run, with its recipe filled in.
    """
    from tqdm.auto import tqdm

    from graddrop import mask_makers

    of = mask_data(config, trainer.n_inputs)
    if of is None:
        return
    preset = METHODS[config.method].masks
    assert preset is not None and preset.made is not None
    model: Any = trainer.model
    params = masked_parameters(config, model)
    losses = tqdm(
        trainer.losses(of["batch_size"], of["batches"]),
        total=of["batches"],
        desc="Making masks",
        unit="batch",
        dynamic_ncols=True,
        disable=not trainer.is_world_process_zero(),
    )
    was_training = model.training
    model.eval()
    scores = getattr(mask_makers, preset.made.scores)(params, losses)
    model.train(was_training)
    masks = mask_makers.top_masks(scores, of["density"], per_tensor=preset.made.per_tensor)
    optimizer: Any = trainer.create_optimizer()
    optimizer.load_masks(mask_makers.broadcast_masks(masks))
