"""Laws of the report's statistics, held against numbers worked out by hand."""

import math
import random
from itertools import product

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")

import numpy as np
from scipy import stats

from graddrop.xglue.report.statistics import (
    MIN_LANGUAGES,
    MIN_PAIRS,
    estimate,
    holm,
    paired_p,
    pairs_needed,
    rank_correlation,
)


def test_the_interval_is_students() -> None:
    """Of 1, 2, 3: standard error 1/sqrt(3), and t of two degrees of freedom is 4.3027 at 97.5 %."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_seed_has_no_interval() -> None:
    """Nor have equal ones, to rounding: no spread was seen, which is no knowledge of none."""
    assert estimate([0.7]).half_width is None
    assert estimate([0.7, 0.7]).half_width is None
    assert estimate([0.1 + 0.2, 0.3, 0.15 + 0.15]).half_width is None
    assert estimate([0.7, 0.7001]).half_width is not None  # negative control


def test_confidence_sets_the_width() -> None:
    """90 % of 1, 2, 3: t of two degrees of freedom is 2.9200 at 95 %."""
    assert estimate([1.0, 2.0, 3.0], 0.9).half_width == pytest.approx(2.919986 / math.sqrt(3))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 2000 intervals of three normal draws, about 95 in 100 hold the mean; a normal one fails.

    The bounds are four standard errors of a share of 2000: 0.95 +- 0.0195.
    """
    rng = random.Random(0)
    student = normal = 0
    for _ in range(2000):
        found = estimate([rng.gauss(5, 1) for _ in range(3)])
        assert found.half_width is not None
        student += abs(found.mean - 5) <= found.half_width
        normal += abs(found.mean - 5) <= found.half_width * 1.959964 / 4.302653
    assert abs(student / 2000 - 0.95) < 0.0195
    assert normal / 2000 < 0.9  # negative control


def test_the_paired_test_is_students() -> None:
    """Of 1, 2, 3: t = 2 sqrt(3), and with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    t = 2 * math.sqrt(3)
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert paired_p([-1.0, 1.0, 0.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, 0.2], [0.01] * 5, [0.0] * 3])
def test_what_cannot_be_tested_is_not(differences: list[float]) -> None:
    """Fewer than three pairs, or differences without spread, get no p."""
    assert paired_p(differences) is None
    assert MIN_PAIRS == 3


def test_from_six_pairs_on_signs_are_flipped() -> None:
    """Six of one sign are 2 of 64 flips; otherwise the signed sums are counted one by one."""
    assert paired_p([0.01 * n for n in (1, 2, 3, 4, 5, 6)]) == pytest.approx(2 / 64)
    assert paired_p([0.02] * 7) == pytest.approx(2 / 128)  # equal ones have a p here
    assert paired_p([0.0] * 6) == 1.0
    numbers = (1, 2, 3, 4, 5, -6)
    sums = [sum(s * n for s, n in zip(f, numbers, strict=True)) for f in product((1, -1), repeat=6)]
    expected = sum(abs(value) >= 9 for value in sums) / 64
    assert paired_p([0.01 * n for n in numbers]) == pytest.approx(expected)
    assert paired_p([0.1 + 0.2, -0.3] * 3) == 1.0  # equal sums, whatever their rounding
    assert paired_p([0.001 * n for n in range(1, 19)]) == pytest.approx(2 / 65537, rel=1)


def test_pairs_needed_reach_the_power() -> None:
    """A difference of one standard deviation is seen by 10 pairs with .80, by 5 with .40."""
    unit = [-1.0, 1.0, -1.0, 1.0, 0.0]  # standard deviation 1
    assert pairs_needed(unit, 1.0) == 10
    assert pairs_needed(unit, 1.0, 0.025) == 13
    assert pairs_needed(unit, 2.0) == 5
    assert pairs_needed(unit, 0.01) is None
    assert pairs_needed([0.1, 0.1], 1.0) is None


def test_holm_steps_down() -> None:
    """0.01, 0.03, 0.04 of three become 0.03, 0.06, and 0.06 again, since it may not fall."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, None, 0.04, 0.03, None]) == [0.03, None, 0.06, 0.06, None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8; 8 of 120 orders reach it."""
    found = rank_correlation([1, 20, 300, 4000, 50000], [2, 1, 4, 3, 5])
    assert found is not None
    assert found.rho == pytest.approx(0.8)
    assert found.p == pytest.approx(2 * 8 / 120)
    assert -1 <= found.low < found.rho < found.high == 1
    # A tie lost to rounding is a tie.
    tied = rank_correlation([1, 2, 3, 4, 5], [(0.1 + 0.2) / 2, (0.15 + 0.15) / 2, 0, -1, -2])
    exact = rank_correlation([1, 2, 3, 4, 5], [0.15, 0.15, 0, -1, -2])
    assert tied == exact
    reversed_ = rank_correlation([1, 2, 3, 4, 5], [-2, -1, -4, -3, -5])
    assert reversed_ is not None
    assert reversed_.rho == pytest.approx(-0.8)


def test_resampling_is_repeatable() -> None:
    """The same points and seed give the same interval; more points than can be ordered, too."""
    rng = random.Random(1)
    x, y = ([rng.random() for _ in range(18)] for _ in range(2))
    assert rank_correlation(x, y, seed=3) == rank_correlation(x, y, seed=3)
    assert rank_correlation(x, y, seed=3) != rank_correlation(x, y, seed=4)


def test_a_correlation_is_told_from_none() -> None:
    """Eighteen languages whose gain falls with their text are seen; shuffled ones are not."""
    rng = random.Random(2)
    x = [math.exp(rng.uniform(0, 5)) for _ in range(18)]
    y = [-math.log(size) + rng.gauss(0, 0.5) for size in x]
    found = rank_correlation(x, y)
    assert found is not None
    assert found.high < 0
    assert found.p < 0.01
    rng.shuffle(y)
    control = rank_correlation(x, y)
    assert control is not None
    assert control.low < 0 < control.high
    assert control.p > 0.05


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, 5], [0] * 5), ([2] * 5, [1, 2, 3, 4, 5])],
)
def test_no_correlation_of_too_little(x: list[float], y: list[float]) -> None:
    """Fewer than five points, or points without spread, have none."""
    assert rank_correlation(x, y) is None
    assert MIN_LANGUAGES == 5


def test_the_interval_of_a_correlation_is_of_95_percent() -> None:
    """Its ends are the quantiles of 40,000 resamples drawn here, to what 9,999 leave open."""
    x = list(range(18))
    y = [3, 1, 2, 7, 5, 4, 9, 6, 8, 12, 10, 11, 15, 13, 14, 18, 16, 17]
    found = rank_correlation(x, y)
    assert found is not None
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 18, (40_000, 18))
    ranks = [stats.rankdata(np.array(values)[drawn], axis=1) for values in (x, y)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    rho = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    low, high = np.quantile(rho, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.004)
    assert abs(np.quantile(rho, 0.05) - low) > 0.02  # negative control: the ends of 90 %
