"""Laws of clipping in a run: the optimizer does it, in its own pass, as the Trainer would."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.finetune_runs import config, trainer_of, write_data
from transformers import Trainer, TrainerCallback

from graddrop.xglue.training.trainer import ZeroShotTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a toy grammar."""
    return write_data(tmp_path_factory.mktemp("data"))


class Norms(TrainerCallback):
    """Notes the norm of the gradients as the optimizer gets them."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        """Look at all gradients together."""
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self.seen.append(torch.nn.utils.get_total_norm(grads).item())


def trained(data: Path, folder: Path, bound: float, **of_trainer: Any) -> tuple[Any, Norms]:
    """A run of a few steps, and the norms that its optimizer met.

    Args:
        data: Its data.
        folder: Its folder.
        bound: What the run asks for.
        of_trainer: `max_grad_norm`: what the Trainer is told instead, the optimizer nothing.
    """
    run = config(data, folder, max_steps=5, epochs=None, max_grad_norm=bound, log_steps=1)
    trainer = trainer_of(run)
    norms = Norms()
    trainer.add_callback(norms)
    assert trainer.args.max_grad_norm == 0
    if of_trainer:
        trainer.args.max_grad_norm = of_trainer["max_grad_norm"]
        del trainer.optimizer_cls_and_kwargs[1]["max_grad_norm"]
    trainer.train()
    return trainer, norms


def logged(trainer: Any, name: str) -> list[float]:
    """A column of the learning curve."""
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_clips_as_the_trainer_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same losses, weights and logged norms to rounding; the gradients themselves stay."""
    ours, norms = trained(data, tmp_path / "ours", 0.05)
    assert min(norms.seen) > 0.1, "the bound would not bite"
    assert logged(ours, "grad_norm") == pytest.approx(norms.seen, rel=1e-5)

    free, _ = trained(data, tmp_path / "free", 0)
    assert all(norm > 0 for norm in logged(free, "grad_norm"))

    monkeypatch.setattr(ZeroShotTrainer, "_get_grad_norm", Trainer._get_grad_norm)
    monkeypatch.setattr(ZeroShotTrainer, "log", Trainer.log)
    theirs, clipped = trained(data, tmp_path / "theirs", 0.05, max_grad_norm=0.05)
    # Negative control: the Trainer scales the gradients in memory before the step.
    assert max(clipped.seen) < 0.051
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-5)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-4)
    assert distance(ours, theirs) < 1e-3 * distance(ours, free)


def distance(a: Any, b: Any) -> float:
    """Between two runs' weights."""
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return torch.cat([(x - y).flatten() for x, y in pairs]).norm().item()
