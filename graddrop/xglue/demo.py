"""The demonstration: invent a benchmark, pretrain a model, compare fine-tuning methods on it.

Nothing is downloaded. Every part is skipped when it is there already, so a demonstration that was
interrupted goes on where it stopped.
"""

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from graddrop.xglue.curves import draw_curves
from graddrop.xglue.data import evaluation_languages, load_split
from graddrop.xglue.methods import METHODS
from graddrop.xglue.mini import MiniSize, write_mini_xglue
from graddrop.xglue.pretrain import RESULT_FILE, PretrainConfig, pretrain
from graddrop.xglue.runfolder import RunFolder, read_json
from graddrop.xglue.sources import open_source
from graddrop.xglue.sweep import sweep
from graddrop.xglue.sweepplan import SweepPlan
from graddrop.xglue.tasks import TRAIN_LANGUAGE, get_task


@dataclasses.dataclass(frozen=True)
class DemoPlan:
    """How much the demonstration does; the defaults take about two minutes on two cores.

    Args:
        tasks: Names of tasks.
        methods: Names of methods.
        seeds: One run per task, method and seed.
        size: How much of Mini-XGLUE is written.
        pretraining: Values of `PretrainConfig`.
        finetuning: Values of `FinetuneConfig`, the same for all methods.
    """

    tasks: tuple[str, ...] = ("pos", "xnli")
    methods: tuple[str, ...] = ("standard", "graddrop", "layer-graddrop", "gradual-unfreezing")
    seeds: tuple[int, ...] = (0, 1)
    size: MiniSize = MiniSize(train=480, dev=60, test=200, text_lines=6000)
    pretraining: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"epochs": 2.0})
    finetuning: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "epochs": 3.0,
            "batch_size": 16,
            "lr": 1e-3,
            "max_length": 64,
            "eval_steps": 18,
            "eval_all": True,
            "select": "last",
        }
    )


def demo(output: Path, plan: DemoPlan | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Run the demonstration.

    Args:
        output: Folder for `data/`, `model/`, `runs/`, `table.txt`, `curves.png`.
        plan: How much to do; None means the defaults.
        seed: Of the invented languages and of the pretraining.

    Returns:
        The results of the runs (see `graddrop.xglue.train.finetune`), by seed, task and method.

    Raises:
        RunFolderError: If the folder holds something else, or a demonstration of another plan.
        SweepError: If a run failed.
        OSError: If the folder cannot be written.
    """
    plan = plan or DemoPlan()
    asked = json.loads(json.dumps({"seed": seed, **dataclasses.asdict(plan)}))
    folder = RunFolder(output)
    folder.check(asked, resume=True)
    folder.claim(asked)

    data, model = output / "data", output / "model"
    if not data.exists():
        with _part("Inventing nine tasks in nine languages"):
            write_mini_xglue(data, plan.size, seed)
    if not model.exists():
        with _part("Pretraining a small XLM-R on their raw text"):
            text = str(data / "text")
            pretrain(PretrainConfig(text, str(model), seed=seed, **plan.pretraining))
    with _part("Fine-tuning on English"):
        comparison = SweepPlan(
            tasks=plan.tasks,
            methods=plan.methods,
            seeds=plan.seeds,
            settings={"data": str(data), "model": str(model), **plan.finetuning},
        )
        results = sweep(comparison, output)
    text_bytes = read_json(model / RESULT_FILE)["bytes"]
    tables = [
        demo_table(
            [result for result in results if result["task"] == task],
            majority_scores(task, str(data)),
            text_bytes,
        )
        for task in plan.tasks
    ]
    (output / "table.txt").write_text("\n".join(tables), encoding="utf-8")
    draw_curves(results, output / "curves.png")
    return results


def majority_scores(task_name: str, data: str) -> dict[str, float]:
    """Score the most frequent English training label, given to everything in the test sets.

    Args:
        task_name: A task that gives labels to words or texts.
        data: Folder in the archive's layout.

    Returns:
        The task's plain metric (see `plain_metric`) as a fraction, by language.
    """
    task, source = get_task(task_name), open_source(data)
    column = "tags" if task.head == "token" else "label"

    def labels(split: str, language: str) -> list[str]:
        values = load_split(task, source, split, language)[column]
        return list(chain.from_iterable(values)) if task.head == "token" else list(values)

    ((label, _),) = Counter(labels("train", TRAIN_LANGUAGE)).most_common(1)
    found, _ = evaluation_languages(task, source, "test")
    shares = {}
    for language in found:
        given = labels("test", language)
        shares[language] = given.count(label) / len(given)
    return shares


def plain_metric(task: str) -> str:
    """Name the metric that has a chance level: the share of right labels."""
    return get_task(task).metrics[-1]


def demo_table(
    results: Sequence[Mapping[str, Any]],
    majority: Mapping[str, float],
    text_bytes: Mapping[str, int],
) -> str:
    """Render the test scores of one task: languages by methods, in per cent.

    Args:
        results: Results of the task, of any methods and seeds.
        majority: Score of the majority label by language, as a fraction.
        text_bytes: Bytes of raw text that the model was pretrained on, by language.

    Returns:
        Lines of text: a title, a row per language from the most raw text to the least, a row of
        means over the languages that were not trained on.
    """
    task = results[0]["task"]
    metric = plain_metric(task)
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        by_method.setdefault(result["config"]["method"], []).append(result["scores"]["test"])
    languages = sorted(majority, key=lambda language: -text_bytes[language])
    columns = {"majority": majority} | {
        method: {code: _mean(run[code][metric] for run in runs) for code in languages}
        for method, runs in by_method.items()
    }
    seeds = max(map(len, by_method.values()))
    lines = [
        f"{task}: {metric.replace('_', ' ')} on test in %, mean of {seeds} seeds",
        f"{'':10}{'text kB':>9}" + "".join(f"  {name:>{_WIDTH}}" for name in columns),
    ]
    for code in languages:
        cells = "".join(f"  {100 * column[code]:{_WIDTH}.1f}" for column in columns.values())
        lines.append(f"{code:10}{text_bytes[code] / 1000:9.0f}{cells}")
    zero_shot = [code for code in languages if code != TRAIN_LANGUAGE]
    means = "".join(
        f"  {100 * _mean(column[code] for code in zero_shot):{_WIDTH}.1f}"
        for column in columns.values()
    )
    return "\n".join([*lines, f"{'zero-shot':10}{'':9}{means}"]) + "\n"


_WIDTH = max(map(len, METHODS))


def _mean(values: Iterable[float]) -> float:
    collected = list(values)
    return sum(collected) / len(collected)


@contextmanager
def _part(title: str) -> Iterator[None]:
    """Say what is being done, then how long it took."""
    print(f"{title} ...", flush=True)
    started = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - started:.0f} s", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--output", required=True, help="folder for data, model, runs and results")
    parser.add_argument("--seed", type=int, default=0, help="of the invented languages")


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and print its table."""
    output = Path(args.output)
    demo(output, seed=args.seed)
    print("\n" + (output / "table.txt").read_text(encoding="utf-8"))
    print(f"Learning curves: {output / 'curves.png'}")
    return 0
