"""Drop probabilities that change over time: callables of the number of finished steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .mask import threshold

Schedule = Callable[[int], float]


def _check_probability(value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"Invalid drop_prob value: {value!r}: expected a number in [0, 1], got {type(value)}"
        )
    threshold(float(value))


def _check_steps(n_steps: Any) -> None:
    if not isinstance(n_steps, Integral) or isinstance(n_steps, bool):
        raise TypeError(f"Invalid n_steps value: {n_steps!r}: expected an int, got {type(n_steps)}")
    if n_steps < 1:
        raise ValueError(f"Invalid n_steps value: {n_steps}: expected at least 1 step")


@dataclass(frozen=True)
class _Ramp:
    start: float
    end: float
    n_steps: int

    def __post_init__(self) -> None:
        _check_probability(self.start)
        _check_probability(self.end)
        _check_steps(self.n_steps)

    def _progress(self, step: int) -> float:
        return min(max(step / self.n_steps, 0.0), 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """From ``start`` to ``end`` in a straight line over ``n_steps`` steps, then ``end``.

    Attributes:
        start: drop probability before the first step, in [0, 1].
        end: drop probability from step ``n_steps`` on, in [0, 1].
        n_steps: length of the ramp, in optimizer steps, >= 1.

    Raises:
        ValueError: a probability outside [0, 1], or ``n_steps`` below 1.
        TypeError: a probability that is no number, or ``n_steps`` that is no int.
    """

    def __call__(self, step: int) -> float:
        """Drop probability of the step after ``step`` finished ones."""
        return self.start + (self.end - self.start) * self._progress(step)


@dataclass(frozen=True)
class Cosine(_Ramp):
    """From ``start`` to ``end`` along half a cosine wave over ``n_steps`` steps, then ``end``.

    ``end + (start - end) (1 + cos(pi step / n_steps)) / 2``, the shape of the cosine learning rate
    schedule (Loshchilov & Hutter 2017, equation 5). Attributes and errors as in :class:`Linear`.
    """

    def __call__(self, step: int) -> float:
        """Drop probability of the step after ``step`` finished ones."""
        half_wave = (1 + math.cos(math.pi * self._progress(step))) / 2
        return self.end + (self.start - self.end) * half_wave


@dataclass(frozen=True)
class Stepwise:
    """One value after another, each for ``n_steps`` steps, then the last one.

    Attributes:
        drop_probs: drop probabilities in their order, each in [0, 1]; at least one.
        n_steps: how many optimizer steps each lasts, >= 1.

    Raises:
        ValueError: a probability outside [0, 1], none at all, or ``n_steps`` below 1.
        TypeError: ``drop_probs`` that is no list or tuple of numbers, or ``n_steps`` that is no
            int.
    """

    drop_probs: Sequence[float]
    n_steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.drop_probs, Sequence) or isinstance(self.drop_probs, str):
            raise TypeError(
                f"Invalid drop_probs value: {self.drop_probs!r}: expected a list or tuple of "
                f"numbers in [0, 1], got {type(self.drop_probs)}"
            )
        if not self.drop_probs:
            raise ValueError("Invalid drop_probs value: (): expected at least one probability")
        for drop_prob in self.drop_probs:
            _check_probability(drop_prob)
        _check_steps(self.n_steps)

    def __call__(self, step: int) -> float:
        """Drop probability of the step after ``step`` finished ones."""
        return self.drop_probs[min(max(step // self.n_steps, 0), len(self.drop_probs) - 1)]
