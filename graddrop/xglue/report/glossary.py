"""What the names in a report stand for, in a line each."""

from collections.abc import Iterator, Mapping

from graddrop.xglue.methods import METHODS
from graddrop.xglue.report.collect import Experiment

_TASKS: Mapping[str, str] = {
    "ner": "find names of persons, organisations, places and others in a sentence",
    "pos": "tell the part of speech of each word",
    "nc": "tell the category of a news article",
    "mlqa": "find the answer to a question in a passage",
    "xnli": "tell whether a sentence follows from another, contradicts it, or neither",
    "paws-x": "tell whether two sentences mean the same",
    "qadsm": "tell whether an advertisement fits a query",
    "wpr": "rank web pages by how well they fit a query",
    "qam": "tell whether a passage answers a question",
}


def explained(experiment: Experiment) -> Iterator[str]:
    """Explain each task, and each method, of an experiment."""
    for task in experiment.tasks:
        metric = next(run.metric for run in experiment.of(task)).replace("_", " ")
        yield f"{task}: {_TASKS[task]} (official score: {metric})."
    for method in dict.fromkeys(arm.method for arm in experiment.arms):
        yield f"{method}: {METHODS[method].summary}."
    if any(arm.drop_probs for arm in experiment.arms):
        yield "drop: the probability that a gradient is dropped; p: that of chance, in a test."
