"""What a handful of seeds can say: intervals, paired tests, rank correlations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95

MIN_PAIRS = 3
"""Pairs below which no test is made: two give one degree of freedom, on which any p rests on the
assumption of normality alone."""

SIGN_FLIPS = 6
"""Pairs from which on signs are flipped instead of assuming a normal distribution: of five, all of
one sign have p = 2/32."""

MIN_LANGUAGES = 5
"""Points below which no correlation is tested: the best of the 4! orders has a two-sided p of 1/12,
so no outcome could be significant."""

RESAMPLES = 9999

POWER = 0.8
"""Chance of seeing a difference with which `pairs_needed` counts."""

DIGITS = 9
"""Scores are ratios of counts; what differs beyond these digits differs by rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean with the interval that its spread allows.

    Args:
        mean: Of the values.
        half_width: Half of the two-sided t interval; None with fewer than two values, or where
            all are the same: a spread of nothing would be an interval of no width.
        n: Number of values.
    """

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Args:
        rho: In [-1, 1].
        low: Lower end of the 95 % bootstrap interval.
        high: Its upper end.
        p: Two-sided, of the permutation test.
        n: Number of points.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a mean with its t interval (Student 1908).

    Assumes that the values are independent draws from about a normal distribution.

    Args:
        values: At least one.
        confidence: Of the interval, in (0, 1).
    """
    from scipy import stats

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2 or _all_the_same(values):
        return Estimate(mean, None, n)
    quantile = stats.t.ppf((1 + confidence) / 2, n - 1)
    return Estimate(mean, float(quantile * stats.sem(values)), n)


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of a paired test (the mean difference is zero).

    From `SIGN_FLIPS` pairs on it is that of Fisher's sign-flip test (1935), which takes each
    difference as equally likely with either sign: of all flips up to 16 pairs, of 65,536 random
    ones beyond. With fewer it is that of Student's t test.

    Args:
        differences: One per pair.

    Returns:
        None with fewer than `MIN_PAIRS` pairs, or where the t test has no spread to judge by.
    """
    from scipy import stats

    if len(differences) < MIN_PAIRS:
        return None
    if len(differences) < SIGN_FLIPS:
        return None if _all_the_same(differences) else _t_test(differences)
    # In whole units equal sums are equal, whatever the order of their terms.
    units = [round(value * 10**DIGITS) for value in differences]
    test = stats.permutation_test(
        (units,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=1 << 16,
        rng=0,
    )
    return float(test.pvalue)


def _t_test(differences: Sequence[float]) -> float:
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def pairs_needed(
    differences: Sequence[float], size: float, level: float = 1 - CONFIDENCE
) -> int | None:
    """Return how many pairs a t test needs to see a difference, by the spread of some pairs.

    Args:
        differences: Some pairs' differences.
        size: Mean difference that is to be seen, positive, in the same unit.
        level: Two-sided level of the test.

    Returns:
        The least number whose power is `POWER`; None if the pairs have no spread, or if it is
        beyond 1000.
    """
    from scipy import stats

    if len(differences) < 2 or _all_the_same(differences):
        return None
    effect = size / float(stats.tstd(differences))
    for n in range(2, 1001):
        bound = float(stats.t.ppf(1 - level / 2, n - 1))
        shifted = stats.nct(n - 1, effect * math.sqrt(n))
        if shifted.sf(bound) + shifted.cdf(-bound) >= POWER:
            return n
    return None


def _all_the_same(values: Sequence[float]) -> bool:
    return round(max(values) - min(values), DIGITS) == 0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct a family of tests so that the chance of any false finding stays below the level.

    Holm 1979, Scandinavian Journal of Statistics 6: the k-th smallest of m is multiplied by
    m - k + 1, and never falls below those before it.

    Args:
        p_values: Of the tests; None for those that were not made, which do not count.
    """
    made = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(made):
        largest = max(largest, min(1.0, (len(made) - rank) * p))
        corrected[index] = largest
    return corrected


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation | None:
    """Correlate ranks, with a bootstrap interval and a permutation test.

    The interval is the percentile interval over resampled points (Efron 1979), rough for few of
    them; the test compares with all orders of `y` up to seven points, with `RESAMPLES` random ones
    beyond. Both take the points as independent.

    Args:
        x: Numbers.
        y: As many.
        seed: Of the resampling.

    Returns:
        None with fewer than `MIN_LANGUAGES` points, or where all of `x` or of `y` are the same.
    """
    from scipy import stats

    # Ties that rounding has parted are ties.
    x, y = ([round(value, DIGITS) for value in values] for values in (x, y))
    if len(x) < MIN_LANGUAGES or any(_all_the_same(values) for values in (x, y)):
        return None
    interval = stats.bootstrap(
        (x, y),
        _spearman,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    test = stats.permutation_test(
        (y,),
        lambda shuffled, axis: _spearman(x, shuffled, axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=seed,
    )
    return Correlation(
        float(stats.spearmanr(x, y).statistic),
        float(interval.low),
        float(interval.high),
        float(test.pvalue),
        len(x),
    )


def _spearman(x: Any, y: Any, axis: int = -1) -> "np.ndarray":
    """Correlate ranks along an axis; where a resample has no spread, there is no correlation: 0."""
    import numpy as np
    from scipy import stats

    ranks = [stats.rankdata(values, axis=axis) for values in (x, y)]
    a, b = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
    spread = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    product = (a * b).sum(axis=axis)
    return np.divide(product, spread, out=np.zeros_like(product), where=spread > 0)
