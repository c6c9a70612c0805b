"""A report from the runs below a folder to its files."""

from collections.abc import Iterator
from pathlib import Path

from graddrop.xglue.data.sources import Source, open_source
from graddrop.xglue.report.collect import Experiment, collect
from graddrop.xglue.report.document import Block, Heading, Items, Picture
from graddrop.xglue.report.figures import picture
from graddrop.xglue.report.learning import draw_curves
from graddrop.xglue.report.markdown import render_markdown
from graddrop.xglue.report.origin import origin_section
from graddrop.xglue.report.resources import resource_section
from graddrop.xglue.report.scores import (
    Baselines,
    difference_section,
    language_section,
    xglue_section,
)
from graddrop.xglue.report.textsizes import TextSizes, text_sizes
from graddrop.xglue.report.webpage import render_webpage
from graddrop.xglue.scores.majority import majority_scores
from graddrop.xglue.tasks import TASKS
from graddrop.xglue.training.run_folder import write_file

MARKDOWN_FILE = "report.md"
WEBPAGE_FILE = "report.html"
PICTURES_FOLDER = "report-figures"


def curves_name(task: str) -> str:
    """Name the files of a task's learning curves, without a suffix."""
    return f"curves-{task}"


def write_report(
    folder: Path, sizes_file: Path | None = None, data: str | None = None
) -> list[Block]:
    """Write `report.md`, `report.html` and the figures beside them.

    Equal runs give equal bytes.

    Args:
        folder: Folder with the runs, at any depth; the report is put into it.
        sizes_file: JSON with the sizes of the pretraining texts, see `textsizes.text_sizes`.
        data: The data of the runs, see `graddrop.xglue.data.sources.open_source`, to show beside
            their scores that of the most frequent label.

    Returns:
        The report's blocks.

    Raises:
        ReportError: If the runs make no report, see `collect.collect`.
        ValueError: If the file of sizes is malformed.
        DataError: If the data are missing or malformed.
        OSError: If a file cannot be read or written; each file is whole or as it was before.
    """
    experiment = collect(folder)
    sizes = text_sizes(experiment.model, folder, sizes_file)
    source = open_source(data) if data else None
    blocks = list(_blocks(experiment, sizes, source))
    pictures = folder / PICTURES_FOLDER
    pictures.mkdir(exist_ok=True)
    names = {
        f"{block.name}.{suffix}": content
        for block in blocks
        if isinstance(block, Picture)
        for suffix, content in block.files.items()
    }
    for name, content in names.items():
        write_file(pictures / name, content)
    write_file(folder / MARKDOWN_FILE, render_markdown(blocks, PICTURES_FOLDER).encode())
    write_file(folder / WEBPAGE_FILE, render_webpage(blocks).encode())
    for path in pictures.iterdir():
        if path.suffix in (".svg", ".png") and path.name not in names:
            path.unlink()
    return blocks


_SMALLEST = 50_000_000
"""Parameters below which a model is no peer of those with published scores (270 M and more)."""


def _baselines(experiment: Experiment, source: Source) -> Baselines:
    return {
        task: majority_scores(
            TASKS[task], source, experiment.of(task)[0].result["config"]["limit_eval"]
        )
        for task in experiment.tasks
    }


def _blocks(
    experiment: Experiment, sizes: TextSizes | None, source: Source | None
) -> Iterator[Block]:
    count = len(experiment.runs)
    yield Heading(f"Fine-tuning report: {count} run{'s' if count > 1 else ''}", 1)
    stand_in = min(run.result["parameters"] for run in experiment.runs) < _SMALLEST
    yield Items([*_summary(experiment, stand_in, source)])
    yield from xglue_section(experiment, with_published=not stand_in)
    yield from difference_section(experiment)
    yield from resource_section(experiment, sizes)
    baselines = _baselines(experiment, source) if source else {}
    yield from language_section(experiment, sizes, baselines)
    yield Heading("Learning curves")
    for task in experiment.tasks:
        yield picture(
            curves_name(task),
            f"{task}: learning curves; thin lines are runs, thick ones means over seeds",
            draw_curves(experiment.of(task), experiment.arms),
        )
    yield from origin_section(experiment)


def _summary(experiment: Experiment, stand_in: bool, source: Source | None) -> Iterator[str]:
    yield f"Tasks: {', '.join(experiment.tasks)}."
    yield f"Methods: {', '.join(arm.label for arm in experiment.arms)}."
    yield f"Model: {experiment.model}; data: {experiment.data}."
    if stand_in:
        yield (
            "The model is a very small stand-in: the numbers show that everything works, not how "
            "well a method does. Published scores, of far larger models, are left out."
        )
    # The same data may lie elsewhere by now, so this is no reason to refuse.
    if source is not None and source.name != experiment.data:
        yield (
            f"Scores of the most frequent label are of the data at {source.name}: they mean "
            "something only if these are the data of the runs."
        )
    if experiment.failed or experiment.unfinished:
        yield (
            f"Not in the numbers: {len(experiment.failed)} failed and "
            f"{len(experiment.unfinished)} unfinished runs, named at the end."
        )
    yield (
        "The methods named graddrop are our reading of the paper's abstract (O'Neill & Dutta, "
        "arXiv 2307.10098); its results are not known to us."
    )
