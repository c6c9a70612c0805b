"""Laws of the order of the training set: a function of seed and epoch."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")

from graddrop.xglue.training.arguments import OneDeviceArguments


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
