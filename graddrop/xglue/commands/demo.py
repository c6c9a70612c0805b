"""The demonstration: invent a benchmark, pretrain a model, compare fine-tuning methods on it.

Nothing is downloaded. Every part is skipped when it is there already, so a demonstration that was
interrupted goes on where it stopped.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graddrop.xglue.mini import MiniSize, write_mini_xglue
from graddrop.xglue.report import write_report
from graddrop.xglue.report.document import Block, Paragraph, find_table
from graddrop.xglue.report.markdown import render_table
from graddrop.xglue.report.sections.languages import table_name
from graddrop.xglue.report.write import WEBPAGE_FILE
from graddrop.xglue.sweep.plan import SweepPlan
from graddrop.xglue.sweep.runner import SweepError, sweep
from graddrop.xglue.tasks import get_task
from graddrop.xglue.textfile import printable
from graddrop.xglue.training.pretrain import pretrain
from graddrop.xglue.training.pretrain_config import PretrainConfig
from graddrop.xglue.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class DemoPlan:
    """How much the demonstration does; the defaults take about three minutes on two cores.

    Args:
        tasks: Names of tasks.
        methods: Names of methods.
        seeds: One run per task, method and seed.
        size: How much of Mini-XGLUE is written.
        pretraining: Values of `PretrainConfig`.
        finetuning: Values of `FinetuneConfig`, the same for all methods.
    """

    tasks: tuple[str, ...] = ("pos", "xnli")
    methods: tuple[str, ...] = ("standard", "graddrop", "lr-matched")
    seeds: tuple[int, ...] = (0, 1, 2)
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


def demo(output: Path, plan: DemoPlan | None = None, seed: int = 0) -> list[Block]:
    """Run the demonstration.

    Args:
        output: Folder for `data/`, `model/`, `runs/` and the report.
        plan: How much to do; None means the defaults.
        seed: Of the invented languages and of the pretraining.

    Returns:
        The report, see `graddrop.xglue.report.write_report`.

    Raises:
        RunFolderError: If the folder holds something else, or a demonstration of another plan.
        SweepError: If a run failed.
        OSError: If the folder cannot be written.
    """
    plan = plan or DemoPlan()
    asked = json.loads(json.dumps({"seed": seed, **dataclasses.asdict(plan)}))
    RunFolder(output).claim(asked)

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
            arms=plan.methods,
            settings={
                "data": str(data),
                "model": str(model),
                "seeds": plan.seeds,
                **plan.finetuning,
            },
        )
        sweep(comparison, output)
    with _part("Comparing"):
        return write_report(output, data=str(data))


@contextmanager
def _part(title: str) -> Iterator[None]:
    """Say what is being done, then how long it took."""
    print(f"{title} ...", flush=True)
    started = time.perf_counter()
    yield
    print(f"{title}: {time.perf_counter() - started:.0f} s", flush=True)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and print its tables; return 1 if one of its runs has failed."""
    output = Path(args.output)
    plan = DemoPlan()
    try:
        report = demo(output, plan, args.seed)
    except SweepError as error:
        print(f"{printable(str(error))}\nThe same command tries again.", file=sys.stderr)
        return 1
    for task in plan.tasks:
        # The last metric is the plain one, which has a chance level.
        table = find_table(report, table_name(task, "test", get_task(task).metrics[-1]))
        print(f"\n{table.caption}\n\n{render_table(table)}")
    verdict = next(block for block in report if isinstance(block, Paragraph))
    print(f"\n{verdict.text}\n\nOpen {output / WEBPAGE_FILE}")
    return 0
