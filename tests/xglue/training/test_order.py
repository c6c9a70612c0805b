"""Laws of the order of the training set: a function of seed and epoch, with little padding."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import numpy as np
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from helpers.finetune_runs import config, trainer_of, write_data
from helpers.xglue_files import NO_REAL_DATA, REAL_DATA
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState

from bench.padding import BATCH_SIZES, TASKS, lengths_of, padding
from graddrop.xglue.training.arguments import OneDeviceArguments
from graddrop.xglue.training.callbacks import NewOrderEachEpoch
from graddrop.xglue.training.order import POOL, LengthSampler, order_of_epoch

MODEL = os.environ.get("GRADDROP_MODEL")

# Sentences as treebanks have them: many short ones, few long ones.
LENGTHS = np.random.default_rng(0).lognormal(3, 0.8, 3001).astype(int).clip(3, 128).tolist()


def cut(order: Sequence[int], size: int) -> list[list[int]]:
    """An order in batches."""
    return [list(order[at : at + size]) for at in range(0, len(order), size)]


def test_neighbouring_seeds_share_no_orders(tmp_path: Path) -> None:
    """However the Trainer adds epochs to them, no two of many seeds meet."""
    data_seeds = []
    for seed in range(300):
        arguments = OneDeviceArguments(str(tmp_path), seed=seed, use_cpu=True, report_to=[])
        assert arguments.data_seed is not None and 0 <= arguments.data_seed < 2**32
        data_seeds.append(arguments.data_seed)
    # On a circle, since torch takes the lowest 32 bits of a seed.
    around = sorted(data_seeds)
    gaps = [b - a for a, b in zip(around, [*around[1:], around[0] + 2**32], strict=True)]
    assert min(gaps) > 10_000
    named = OneDeviceArguments(str(tmp_path), data_seed=7, use_cpu=True, report_to=[])
    assert named.data_seed == 7


@pytest.mark.parametrize("size", [1, 7, 16])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 16 * POOL - 1, 16 * POOL + 33])
def test_an_epoch_reads_every_example_once(n: int, size: int) -> None:
    """Also where there are fewer than a batch, or than a pool; the rest is the last batch."""
    order = list(order_of_epoch(LENGTHS[:n], size, 3, 1))
    assert sorted(order) == list(range(n))
    # A whole batch holds neighbours in length of its pool; the rest is of any length.
    for batch in cut(order, size)[: n // size]:
        assert [LENGTHS[index] for index in batch] == sorted(LENGTHS[index] for index in batch)


@pytest.mark.parametrize("size", [16, 32])
def test_training_pads_little(size: int) -> None:
    """At most 1.15 positions for a sub-word, where batches drawn at random take twice as many."""
    for seed, epoch in itertools.product(range(3), range(2)):
        assert padding(LENGTHS, list(order_of_epoch(LENGTHS, size, seed, epoch)), size) < 1.15
    assert padding(LENGTHS, range(len(LENGTHS)), size) > 2


@pytest.mark.skipif(not (REAL_DATA / "POS").is_dir(), reason=NO_REAL_DATA)
@pytest.mark.skipif(MODEL is None, reason="no tokenizer of real text (set GRADDROP_MODEL)")
@pytest.mark.parametrize("task", TASKS)
def test_training_on_real_data_pads_little(task: str) -> None:
    """As the made-up lengths, in the tasks of which files are at hand."""
    lengths = lengths_of(task, str(MODEL), str(REAL_DATA))
    for size in BATCH_SIZES:
        assert padding(lengths, list(order_of_epoch(lengths, size, 0, 0)), size) <= 1.15
        assert padding(lengths, range(len(lengths)), size) > 1.15  # negative control


def test_orders_are_functions_of_seed_and_epoch() -> None:
    """The same again, whatever else was drawn; another one for any other pair, batches included."""
    orders = {}
    for seed, epoch in itertools.product(range(4), range(4)):
        torch.manual_seed(epoch)
        np.random.seed(seed)
        orders[seed, epoch] = list(order_of_epoch(LENGTHS, 16, seed, epoch))
        assert orders[seed, epoch] == list(order_of_epoch(LENGTHS, 16, seed, epoch))
    batches = {key: {frozenset(batch) for batch in cut(order, 16)} for key, order in orders.items()}
    for a, b in itertools.combinations(orders, 2):
        assert orders[a] != orders[b]
        assert len(batches[a] & batches[b]) < 0.1 * len(batches[a])


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [(1, 2, [10, 7, 3, 1, 0, 4, 5, 9, 6, 8, 2]), (2, 1, [9, 0, 6, 8, 5, 10, 4, 2, 3, 1, 7])],
)
def test_an_order_is_the_same_forever(seed: int, epoch: int, expected: list[int]) -> None:
    """Known answers: a run that is gone on from, or made again years later, reads the same."""
    lengths = [7, 3, 9, 3, 8, 4, 1, 6, 2, 5, 5]
    assert list(order_of_epoch(lengths, 2, seed, epoch)) == expected


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("skip", [0, 3])
def test_processes_share_an_order_out_also_when_they_resume(n_processes: int, skip: int) -> None:
    """Through accelerate's shards, and from the middle of the second epoch on."""
    size = 8
    lengths = LENGTHS[:96]
    shares = []
    for process in range(n_processes):
        sampler = LengthSampler(lengths, size, 5)
        loader = prepare_data_loader(
            DataLoader(range(96), batch_size=size // n_processes, sampler=sampler),
            num_processes=n_processes,
            process_index=process,
            use_seedable_sampler=True,
            put_on_device=False,
        )
        if skip:
            loader = skip_first_batches(loader, skip)
        loader.set_epoch(1)  # as the Trainer does
        NewOrderEachEpoch(sampler).on_epoch_begin(
            SimpleNamespace(), TrainerState(epoch=1 + skip / 12), TrainerControl()
        )
        shares.append([batch.tolist() for batch in loader])
    read = [index for steps in zip(*shares, strict=True) for share in steps for index in share]
    assert read == list(order_of_epoch(lengths, size, 5, 1))[skip * size :]


def test_a_batch_is_the_same_examples_in_however_many_pieces(tmp_path: Path) -> None:
    """What accumulation cuts into micro-batches is the batch that would be read as one."""
    data = write_data(tmp_path / "data")
    batches = []
    for accumulation in (1, 4):
        trainer = trainer_of(config(data, tmp_path / str(accumulation), accumulation=accumulation))
        micro = [
            [tuple(ids[ids != 1].tolist()) for ids in inputs["input_ids"]]
            for inputs in trainer.get_train_dataloader()
        ]
        assert len(micro[0]) == 8 // accumulation
        batches.append(cut([example for batch in micro for example in batch], 8))
        tellers = [c for c in trainer.callback_handler.callbacks if type(c) is NewOrderEachEpoch]
        assert [teller.sampler for teller in tellers] == [trainer._get_train_sampler()]
    assert batches[0] == batches[1]
    assert len(batches[0]) == 5
