"""The bits of masks are as random as their counts can tell, along every axis of the contract."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.root import ROOT
from scipy import stats
from torch import Tensor

from graddrop.mask import (
    LAYER_STREAM,
    ROUNDING_STREAM,
    ROW_STREAM,
    TILE,
    random_u16,
    rescale_factor,
    threshold,
)

# A law fails where chance alone would put a statistic this far out, on either side, in one of
# 10,000 cases: counts that are too even betray a generator as surely as uneven ones. The inputs are
# fixed, so a law passes always or never; a perfect generator had a chance of 0.3 % of failing one
# of the 29 laws here.
SIGNIFICANCE = 1e-4

# 16 random bits of (element, stream, draw, seed), int64 tensors that broadcast.
Generator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def contract(element: Tensor, stream: Tensor, draw: Tensor, seed: Tensor) -> Tensor:
    """The generator of the mask contract."""
    shape = torch.broadcast_shapes(element.shape, stream.shape, draw.shape, seed.shape)
    return random_u16(element.expand(shape), stream=stream, draw=draw, seed=seed)  # type: ignore[arg-type]


def congruential(element: Tensor, stream: Tensor, draw: Tensor, seed: Tensor) -> Tensor:
    """Deliberately bad: one step of a linear congruential generator from the sum of the inputs."""
    return (1664525 * (element + stream + draw + seed) + 1013904223 >> 16) & 0xFFFF


def both_sides(p_value: float) -> float:
    """Two-sided p-value of a statistic from its one-sided one."""
    return min(1.0, 2 * min(p_value, 1 - p_value))


def chi_square(statistic: float, degrees: int) -> float:
    """Two-sided p-value of a chi-square statistic: too large or too small."""
    return both_sides(float(stats.chi2.sf(statistic, degrees)))


def grid(axis: str, length: int, n_elements: int) -> dict[str, Tensor]:
    """Coordinates of n elements (columns) at consecutive values of an axis (rows)."""
    zero = torch.zeros(1, 1, dtype=torch.int64)
    at = {"element": torch.arange(n_elements)[None, :], "stream": zero, "draw": zero, "seed": zero}
    rows = torch.arange(length)[:, None]
    return at | {axis: at[axis] + n_elements * rows if axis == "element" else rows}


GENERATORS = pytest.mark.parametrize(
    "bits, good", [(contract, True), (congruential, False)], ids=["contract", "control"]
)


@GENERATORS
@pytest.mark.parametrize("drop_prob", [0.1, 0.5, 0.9])
def test_keep_rate_is_what_was_asked_for(bits: Generator, good: bool, drop_prob: float) -> None:
    """Counts of kept entries scatter around the realised probability as a binomial does."""
    n = 4096
    keep = bits(**grid("draw", 256, n)) >= threshold(drop_prob)
    expected = 1 / rescale_factor(drop_prob)
    scores = (keep.sum(dim=1) - n * expected) / (n * expected * (1 - expected)) ** 0.5
    assert (chi_square(float(scores.square().sum()), len(scores)) > SIGNIFICANCE) == good


@pytest.mark.parametrize("drop_threshold, right", [(1, True), (2, False)], ids=["<", "<="])
def test_keep_rate_at_the_smallest_probability(drop_threshold: int, right: bool) -> None:
    """Of 65536 entries one is dropped at 1/65536; a compare that includes equality drops two."""
    assert threshold(1 / 65536) == 1
    n = 1 << 21
    dropped = int((contract(**grid("element", 32, n // 32)) < drop_threshold).sum())
    p_value = stats.binomtest(dropped, n, 1 / 65536).pvalue
    assert (p_value > SIGNIFICANCE) == right


@pytest.mark.parametrize("drop_prob", [0.0, 1.0])
def test_certainty_is_certain(drop_prob: float) -> None:
    """At 0 nothing is dropped, at 1 everything; the bits reach both of their ends."""
    bits = contract(**grid("draw", 64, 8191))
    assert torch.equal(bits < threshold(drop_prob), torch.full(bits.shape, bool(drop_prob)))
    assert (int(bits.min()), int(bits.max())) == (0, 65535)


@GENERATORS
def test_every_position_of_a_tile_drops_alike(bits: Generator, good: bool) -> None:
    """No half, call or word of a tile is favoured: drops by position, over 1024 draws."""
    drops = (bits(**grid("draw", 1024, TILE)) < threshold(0.3)).sum(dim=0)
    p = threshold(0.3) / 65536
    statistic = (drops - 1024 * p).square().sum() / (1024 * p * (1 - p))
    assert (chi_square(float(statistic), TILE) > SIGNIFICANCE) == good


@GENERATORS
@pytest.mark.parametrize("axis", ["element", "stream", "draw", "seed"])
def test_all_values_come_alike(bits: Generator, good: bool, axis: str) -> None:
    """The high and the low byte of the 16 bits are uniform along every axis."""
    values = bits(**grid(axis, 1 << 16, 5))
    smallest = 1.0
    for byte in (values >> 8, values & 255):
        counts = torch.bincount(byte.reshape(-1), minlength=256).double()
        expected = values.numel() / 256
        statistic = float((counts - expected).square().sum() / expected)
        smallest = min(smallest, chi_square(statistic, 255))
    assert (smallest > SIGNIFICANCE / 2) == good  # two statistics


def pair_p_value(first: Tensor, second: Tensor) -> float:
    """Smallest of three p-values that two samples of equal shape are independent, times three.

    Pearson's correlation of the 16 bits; a 16 x 16 table of their leading four bits; a 2 x 2 table
    of the keep decisions at 0.5, which is what the first two are about.
    """
    x, y = first.reshape(-1), second.reshape(-1)
    n = x.numel()
    if torch.equal(x, y):
        return 0.0
    r = float(torch.corrcoef(torch.stack([x, y]).double())[0, 1])
    p_values = [float(2 * stats.norm.sf(abs(r) * n**0.5))]
    for shift in (12, 15):
        size = 1 << (16 - shift)
        joint = torch.bincount((x >> shift) * size + (y >> shift), minlength=size * size)
        table = joint.view(size, size).double()
        expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / n
        statistic = float(((table - expected).square() / expected).sum())
        p_values.append(chi_square(statistic, (size - 1) ** 2))
    return 3 * min(p_values)


NEIGHBOURS = [
    ("element", 1),  # the next word of one generator call
    ("element", 2),
    ("element", 4),  # the next call
    ("element", 512),  # the other half of the same word
    ("element", 1024),  # the next tile
    ("element", 1 << 35),  # the same low half of the group counter
    ("stream", 1),
    ("stream", 2),
    ("stream", ROW_STREAM),
    ("stream", LAYER_STREAM),
    ("stream", ROUNDING_STREAM),
    ("draw", 1),
    ("draw", 2),
    ("draw", 1 << 31),
    ("seed", 1),
    ("seed", 2),
    ("seed", 1 << 32),  # the other half of the key
    ("seed", 1 << 62),
]


@GENERATORS
@pytest.mark.parametrize("axis, distance", NEIGHBOURS)
def test_neighbours_are_independent(bits: Generator, good: bool, axis: str, distance: int) -> None:
    """Entries at a small, or a suspicious, distance along an axis know nothing of each other."""
    here = grid("draw" if axis == "element" else axis, 48, 4096)
    there = here | {axis: here[axis] + distance}
    assert (pair_p_value(bits(**here), bits(**there)) > SIGNIFICANCE) == good


def test_axes_do_not_mirror_each_other() -> None:
    """Entry i of parameter j is not entry j of parameter i, nor is a seed another's draw."""
    names = ("element", "stream", "draw", "seed")
    row, column = torch.arange(1, 449)[:, None], torch.arange(449, 897)[None, :]
    rest = {name: torch.zeros(1, 1, dtype=torch.int64) for name in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for bits, good in ((contract, True), (congruential, False)):
        p_values = [
            pair_p_value(
                bits(**rest | {a: row, b: column}),
                bits(**rest | {a: column, b: row}),
            )
            for a, b in pairs
        ]
        assert (min(p_values) > SIGNIFICANCE / len(pairs)) == good


@pytest.fixture(scope="module")
def stream_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bench/randomness.cpp`, compiled."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine")
    program = tmp_path_factory.mktemp("randomness") / "randomness"
    command = ["c++", "-std=c++17", "-O1", "-o", program]
    subprocess.run([*command, ROOT / "bench" / "randomness.cpp"], check=True)
    return program


@pytest.mark.parametrize("series", ["elements", "keep", "draws", "streams", "seeds"])
def test_the_battery_reads_the_bits_of_masks(stream_program: Path, series: str) -> None:
    """What `bench/randomness.cpp` writes for a battery is what the contract says."""
    n, lane = 5 * TILE, 7
    with subprocess.Popen([stream_program, series, str(lane)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        written = np.frombuffer(process.stdout.read(2 * n), dtype="<u2")
        process.kill()
    walk, constant = torch.arange(16 * n if series == "keep" else n), torch.tensor([lane])
    zero = torch.zeros(1, dtype=torch.int64)
    at = {"element": zero, "stream": constant, "draw": zero, "seed": zero}
    at |= {"streams": {"stream": walk, "draw": constant}}.get(
        series, {series.rstrip("s") if series != "keep" else "element": walk}
    )
    expected = contract(**at).numpy()
    if series == "keep":
        expected = np.packbits(expected >= 32768, bitorder="little").view("<u2")
    assert np.array_equal(written, expected)
    assert len(set(written.tolist())) > n / 2
