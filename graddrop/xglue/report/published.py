"""Published scores on XGLUE, for orientation: other models, not runs of this project."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of the leaderboard.

    Args:
        name: As published.
        parameters: Size, as published.
        remark: What sets it apart.
        scores: Official test score by task, mean over languages, in per cent.
        mean: Over the nine tasks, as published, in per cent.
    """

    name: str
    parameters: str
    remark: str
    scores: Mapping[str, float]
    mean: float

    def score(self, task: str | None) -> float:
        """Return the score of a task, or the mean for None."""
        return self.mean if task is None else self.scores[task]


ORIGIN = "the XGLUE leaderboard"

_TASKS = ("ner", "pos", "nc", "mlqa", "xnli", "paws-x", "qadsm", "wpr", "qam")


def _scores(*values: float) -> Mapping[str, float]:
    return dict(zip(_TASKS, values, strict=True))


PUBLISHED = (
    Published(
        "Unicoder",
        "270 M",
        "the benchmark's baseline",
        _scores(79.7, 79.6, 83.5, 66.0, 75.3, 90.1, 68.4, 73.9, 68.9),
        76.1,
    ),
    Published(
        "FILTER",
        "550 M",
        "trained on translated data as well, so not zero-shot",
        _scores(82.6, 81.6, 83.5, 76.2, 83.9, 93.8, 71.4, 74.7, 73.4),
        80.1,
    ),
)
