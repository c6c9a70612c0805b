"""Laws of runs that leave out the backward pass of dropped layers: the same training."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.finetune_runs import config, trainer_of, write_data
from transformers import TrainerCallback

from graddrop.trainer import SkipDroppedMixin
from graddrop.xglue.training.trainer import SkippingTrainer, ZeroShotTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a toy grammar."""
    return write_data(tmp_path_factory.mktemp("data"))


class Count(TrainerCallback):
    """Counts the gradients of each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        """Look at all parameters."""
        self.seen.append(sum(param.grad is not None for param in model.parameters()))


def test_a_run_that_skips_trains_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and weights of layer-graddrop, to the last bit, with two passes a step."""
    runs = []
    for skips in (True, False):
        run = config(
            data,
            tmp_path / str(skips),
            method="layer-graddrop",
            max_steps=4,
            epochs=None,
            max_grad_norm=0,
            accumulation=2,
            log_steps=1,
        )
        trainer, count = trainer_of(run), Count()
        assert type(trainer) is SkippingTrainer
        assert trainer.args.ddp_find_unused_parameters
        trainer.add_callback(count)
        if not skips:
            monkeypatch.setattr(SkipDroppedMixin, "training_step", ZeroShotTrainer.training_step)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, list(trainer.model.parameters()), count.seen))
    (losses, params, skipping), (expected, same, full) = runs
    assert losses == expected and len(losses) == 4
    assert all(map(torch.equal, params, same))
    assert min(skipping) < min(full) == max(full)


@pytest.mark.parametrize(
    "changes",
    [{"max_grad_norm": 1.0}, {"max_grad_norm": 0, "site": "update"}, {"granularity": "element"}],
    ids=str,
)
def test_what_is_read_is_not_skipped(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Where a norm or moments read the gradients of what is dropped, all are computed."""
    trainer = trainer_of(config(data, tmp_path / "run", method="layer-graddrop", **changes))
    assert type(trainer) is ZeroShotTrainer


def test_a_trainer_that_clips_by_itself_is_refused(data: Path, tmp_path: Path) -> None:
    """Its norm would miss what is skipped; the error names the cure."""
    run = config(data, tmp_path / "run", method="layer-graddrop", max_grad_norm=0)
    trainer = trainer_of(run)
    trainer.args.max_grad_norm = 1.0
    with pytest.raises(ValueError, match="masked_norm=True"):
        trainer.train()
    trainer.args.max_grad_norm = 0
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters())
    with pytest.raises(TypeError, match="FusedGradDropAdamW"):
        trainer.training_step(trainer.model, {})
