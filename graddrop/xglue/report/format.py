"""Numbers as the report's tables show them."""

from graddrop.xglue.report.statistics import MIN_PAIRS, Estimate

NOTHING = "-"
"""Stands where there is nothing to show."""


def percent(fraction: float | None) -> str:
    """Show a fraction in per cent."""
    return NOTHING if fraction is None else f"{100 * fraction:.2f}"


def points(difference: float) -> str:
    """Show a difference of fractions in points, with its sign."""
    # A loss too small to be seen would show as -0.00.
    return f"{round(100 * difference, 2) + 0.0:+.2f}"


def score(estimate: Estimate | None) -> str:
    """Show a mean in per cent, half of its interval, the number of values."""
    if estimate is None:
        return NOTHING
    spread = "" if estimate.half_width is None else f" ± {100 * estimate.half_width:.2f}"
    return f"{percent(estimate.mean)}{spread} ({estimate.n})"


def interval(estimate: Estimate) -> str:
    """Show the interval of a difference in points."""
    if estimate.half_width is None:
        return NOTHING
    low, high = (estimate.mean + sign * estimate.half_width for sign in (-1, 1))
    return f"{points(low)} to {points(high)}"


def p_value(p: float | None) -> str:
    """Show a probability to three digits."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def paired_p_value(p: float | None, estimate: Estimate) -> str:
    """Show the p of a paired test, or why there is none."""
    if p is None:
        return "too few" if estimate.n < MIN_PAIRS else "no spread"
    return p_value(p)


def amount(size: float | None) -> str:
    """Show a size of text to three significant digits, without an exponent."""
    if size is None:
        return NOTHING
    return f"{size:,.0f}" if size >= 1000 else f"{size:.3g}"
