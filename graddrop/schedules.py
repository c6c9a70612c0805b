"""Drop probabilities that change over time: callables of the number of finished steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .mask import threshold

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class _Ramp:
    start: float
    end: float
    n_steps: int

    def __post_init__(self) -> None:
        threshold(self.start)
        threshold(self.end)
        if self.n_steps < 1:
            raise ValueError(f"Invalid n_steps value: {self.n_steps}: expected at least 1 step")

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
    """

    drop_probs: tuple[float, ...]
    n_steps: int

    def __post_init__(self) -> None:
        if not self.drop_probs:
            raise ValueError("Invalid drop_probs value: (): expected at least one probability")
        for drop_prob in self.drop_probs:
            threshold(drop_prob)
        if self.n_steps < 1:
            raise ValueError(f"Invalid n_steps value: {self.n_steps}: expected at least 1 step")

    def __call__(self, step: int) -> float:
        """Drop probability of the step after ``step`` finished ones."""
        return self.drop_probs[min(max(step // self.n_steps, 0), len(self.drop_probs) - 1)]
