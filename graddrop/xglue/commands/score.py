"""The command `graddrop score`: the official scores of prediction files."""

import argparse

from graddrop.xglue.data.layouts import DataError
from graddrop.xglue.data.sources import open_source
from graddrop.xglue.data.splits import evaluation_languages
from graddrop.xglue.scores.columns import columns_of
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.scores.predictions import (
    prediction_file,
    read_predictions,
    strangers,
)
from graddrop.xglue.scores.text_table import score_table
from graddrop.xglue.tasks import get_task
from graddrop.xglue.whole_file import check_writable, write_json


def run(args: argparse.Namespace) -> int:
    """Score and print a table.

    Raises:
        DataError: If nothing is found to score, or a file is malformed.
        ValueError: If the task has no such language.
    """
    task = get_task(args.task)
    task.check_languages(args.languages)
    if args.json:
        check_writable(args.json.parent)
    source = open_source(args.data, verify=args.verify)
    found, missing = evaluation_languages(task, source, args.split, tuple(args.languages))
    scores: dict[str, dict[str, float]] = {}
    notes = [f"no {args.split} file, skipped: {', '.join(missing)}"] if missing else []
    absent: list[str] = []
    for language in found:
        path = prediction_file(args.predictions, task, language)
        if not path.is_file():
            absent.append(language)
            continue
        examples = columns_of(source.examples(task, args.split, language))
        predictions = read_predictions(task, path, examples)
        unknown = strangers(task, predictions)
        if unknown:
            notes.append(f"{path}: no labels, counted wrong: {', '.join(map(repr, unknown[:5]))}")
        scores[language] = {
            name: METRICS[name](examples, predictions, language) for name in task.metrics
        }
    if not scores:
        raise DataError(
            f"nothing to score: no language with both a {args.split} file in {args.data} and "
            f"predictions in {args.predictions / task.folder}"
        )
    if absent:
        notes.append(f"no predictions, skipped: {', '.join(absent)}")
    print(score_table(task.name, {args.split: scores}))
    for note in notes:
        print(note)
    if args.json:
        write_json(args.json, scores)
    return 0
