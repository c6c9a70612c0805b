"""Laws of the loss: one mean over the labels of a batch, however the batch is computed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.finetune_runs import config, trainer_of
from helpers.xglue_files import write_archive

from graddrop.xglue.heads.token import IGNORED


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine toy tasks."""
    return write_archive(tmp_path_factory.mktemp("data"), train=11)


@pytest.fixture(scope="module", params=["pos", "qam", "mlqa"])
def trainer(request: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer of each head, without dropout."""
    folder = tmp_path_factory.mktemp("run") / "run"
    made = trainer_of(config(data, folder, task=request.param, limit_eval=2, max_length=64))
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


def gradient(trainer: Any, micro_batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The gradient that the Trainer's own loop over these micro-batches leaves."""
    trainer.model.zero_grad()
    batches, count = trainer.get_batch_samples(iter(micro_batches), len(micro_batches), "cpu")
    trainer.current_gradient_accumulation_steps = len(batches)
    for inputs in batches:
        trainer.training_step(trainer.model, dict(inputs), count)
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def batch(trainer: Any, rows: Iterable[int]) -> dict[str, torch.Tensor]:
    """Rows of the training set, padded to the longest of them."""
    kept = trainer._remove_unused_columns(trainer.train_dataset)
    return trainer.data_collator([kept[row] for row in rows])


@pytest.mark.parametrize("sizes", [(11,), (8, 3), (1, 6, 4), (1,) * 11])
def test_micro_batches_of_any_sizes_give_the_gradient_of_the_batch(
    trainer: Any, sizes: tuple[int, ...]
) -> None:
    """It is that of the mean over all labels, which the model gives for the batch as one."""
    # Sorted by length, so that the micro-batches have unequal numbers of labels.
    rows = sorted(range(11), key=lambda row: len(trainer.train_dataset[row]["input_ids"]))
    whole = batch(trainer, rows)
    labels = whole["labels"]
    if trainer.task.head == "span":
        targets = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        del whole["labels"]
        whole.update(targets)
    trainer.model.train().zero_grad()
    trainer.model(**whole).loss.backward()
    expected = torch.cat(
        [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    )
    ends = torch.tensor(sizes).cumsum(0).tolist()
    pieces = [batch(trainer, rows[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    found = gradient(trainer, pieces)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    if trainer.task.head == "token" and len(sizes) > 1:
        # Negative control: a mean of the micro-batches' means is something else.
        trainer.model.zero_grad()
        for inputs in pieces:
            (trainer.model(**inputs).loss / len(pieces)).backward()
        means = torch.cat(
            [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        )
        assert (means - expected).norm() > 1e-2 * expected.norm()


def test_devices_together_give_the_gradient_of_the_batch(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two with unequal shares: the mean of their gradients, as they exchange it, is the batch's."""
    rows = sorted(range(11), key=lambda row: len(trainer.train_dataset[row]["input_ids"]))
    shares = [[batch(trainer, rows[:4])], [batch(trainer, rows[4:6]), batch(trainer, rows[6:])]]
    expected = gradient(trainer, [batch(trainer, rows)])
    counts = [
        sum(inputs["labels"].ne(IGNORED).sum() for inputs in share).reshape(1) for share in shares
    ]
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    # What each device knows of the other is how many labels it has.
    monkeypatch.setattr(trainer.accelerator, "gather", lambda _: torch.cat(counts))
    assert trainer.args.average_tokens_across_devices
    found = torch.stack([gradient(trainer, share) for share in shares]).mean(0)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_windows_without_a_label_teach_nothing(trainer: Any) -> None:
    """Alone they give a gradient of zeros, not of NaN; beside others they change nothing."""
    if trainer.task.head != "token":
        pytest.skip("every input of this head has a label")
    rows = list(range(4))
    empty = batch(trainer, rows)
    empty["labels"] = torch.full_like(empty["labels"], IGNORED)
    assert gradient(trainer, [empty]).eq(0).all()
    expected = gradient(trainer, [batch(trainer, [5, 6])])
    assert torch.equal(gradient(trainer, [batch(trainer, [5, 6]), empty]), expected)


def test_losses_in_parts_are_that_of_the_batch(trainer: Any) -> None:
    """8 and 3 rows, of unequal numbers of labels: the mean over all, which the model gives."""
    assert trainer.args.per_device_train_batch_size == 8
    whole = batch(trainer, list(trainer._sampler))
    labels = whole["labels"]
    if trainer.task.head == "span":
        targets = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        del whole["labels"]
        whole.update(targets)
    with torch.no_grad():
        (parts,) = trainer.losses(11, 1)
        found = [float(part) for part in parts]
        expected = float(trainer.model(**whole).loss)
    assert len(found) == 2 and sum(found) == pytest.approx(expected, rel=1e-5)
