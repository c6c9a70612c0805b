"""A report from the runs below a folder to its files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graddrop.xglue.data.sources import Source, open_source
from graddrop.xglue.report.analysis_plan import AnalysisPlan, read_analysis_plan
from graddrop.xglue.report.collect import Experiment, collect
from graddrop.xglue.report.comparison import Comparison, compare
from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Picture
from graddrop.xglue.report.glossary import explained
from graddrop.xglue.report.markdown import render_markdown
from graddrop.xglue.report.pictures.curves import draw_curves
from graddrop.xglue.report.pictures.style import picture
from graddrop.xglue.report.rates import Rates, at_chosen_rates, choose_rates
from graddrop.xglue.report.sections.differences import (
    difference_picture,
    difference_section,
    verdict,
)
from graddrop.xglue.report.sections.equal_cost import cost_section
from graddrop.xglue.report.sections.languages import Baselines, language_section
from graddrop.xglue.report.sections.learning_rates import tuning_section
from graddrop.xglue.report.sections.provenance import origin_section
from graddrop.xglue.report.sections.resources import resource_section
from graddrop.xglue.report.sections.scores import xglue_section
from graddrop.xglue.report.textsizes import TextSizes, text_sizes
from graddrop.xglue.report.webpage import render_webpage
from graddrop.xglue.scores.majority import majority_scores
from graddrop.xglue.tasks import TASKS
from graddrop.xglue.textfile import printable
from graddrop.xglue.whole_file import write_file

MARKDOWN_FILE = "report.md"
WEBPAGE_FILE = "report.html"
PICTURES_FOLDER = "report-figures"

INVENTED = (
    " The languages are invented: this shows that the parts work together, not what a method does "
    "with a language that people speak."
)
"""What follows a verdict on generated data."""


def curves_name(task: str) -> str:
    """Name the files of a task's learning curves, without a suffix."""
    return f"curves-{task}"


@dataclass(frozen=True)
class Files:
    """Where a report is written.

    Args:
        markdown: The report in Markdown.
        webpage: The same as one page; None writes none.
        pictures: Folder of its figures, which lies beside it.
    """

    markdown: Path
    webpage: Path | None
    pictures: Path

    @staticmethod
    def of(place: Path, output: Path | None) -> "Files":
        """Name the files of a report.

        Args:
            place: Folder of runs, or file of scores.
            output: File in Markdown that is asked for; None stands for `report.md` in the folder,
                or beside the file, with a web page.
        """
        if output is None:
            folder = place if place.is_dir() else place.parent
            return Files(folder / MARKDOWN_FILE, folder / WEBPAGE_FILE, folder / PICTURES_FOLDER)
        return Files(output, None, output.with_name(f"{output.stem}-figures"))


def write_report(
    place: Path,
    sizes_file: Path | None = None,
    data: str | None = None,
    plan_file: Path | None = None,
    output: Path | None = None,
) -> list[Block]:
    """Write a report and the figures beside it, see `Files.of`.

    Equal runs give equal bytes.

    Args:
        place: Folder with the runs, at any depth, or a file of scores.
        sizes_file: JSON with the sizes of the pretraining texts, see `textsizes.text_sizes`.
        data: The data of the runs, see `graddrop.xglue.data.sources.open_source`, to show beside
            their scores that of the most frequent label.
        plan_file: What the report is to decide, see `analysis_plan.AnalysisPlan`.
        output: File in Markdown, in place of `report.md` and a web page.

    Returns:
        The report's blocks.

    Raises:
        ReportError: If the runs make no report, see `collect.collect`.
        ValueError: If the plan or the file of sizes is malformed.
        DataError: If the data are missing or malformed.
        OSError: If a file cannot be read or written; each file is whole or as it was before.
    """
    files = Files.of(place, output)
    plan = read_analysis_plan(plan_file) if plan_file else AnalysisPlan()
    everything = collect(place, plan.covers)
    rates = choose_rates(everything, plan.select)
    experiment = at_chosen_rates(everything, rates)
    sizes = text_sizes(experiment.model, files.markdown.parent, sizes_file)
    opened = open_source(data) if data else None
    comparisons = compare(experiment, rates, plan)
    blocks = [
        *_opening(experiment, comparisons, opened, plan),
        *_sections(everything, experiment, rates, comparisons, sizes, opened, plan),
    ]
    files.pictures.mkdir(parents=True, exist_ok=True)
    names = {
        f"{block.name}.{suffix}": content
        for block in blocks
        if isinstance(block, Picture)
        for suffix, content in block.files.items()
    }
    for name, content in names.items():
        write_file(files.pictures / name, content)
    markdown = printable(render_markdown(blocks, files.pictures.name))
    write_file(files.markdown, markdown.encode())
    if files.webpage is not None:
        write_file(files.webpage, printable(render_webpage(blocks)).encode())
    for path in files.pictures.iterdir():
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


def _opening(
    experiment: Experiment,
    comparisons: Sequence[Comparison],
    source: Source | None,
    plan: AnalysisPlan,
) -> Iterator[Block]:
    count = len(experiment.runs)
    title = plan.title or "Fine-tuning report"
    where = " on invented languages" if experiment.invented else ""
    yield Heading(f"{title}: {count} run{'s' if count > 1 else ''}{where}", 1)
    yield Paragraph(verdict(comparisons, plan) + (INVENTED if experiment.invented else ""))
    if comparisons:
        yield difference_picture(experiment, comparisons, plan)
    yield Items([*explained(experiment)])
    yield Items([*_summary(experiment, _is_stand_in(experiment), source)])


def _is_stand_in(experiment: Experiment) -> bool:
    return min(run.result["parameters"] for run in experiment.runs) < _SMALLEST


def _sections(
    everything: Experiment,
    experiment: Experiment,
    rates: Rates,
    comparisons: Sequence[Comparison],
    sizes: TextSizes | None,
    source: Source | None,
    plan: AnalysisPlan,
) -> Iterator[Block]:
    yield from difference_section(experiment, comparisons, plan)
    yield from cost_section(experiment, plan)
    yield from tuning_section(everything, rates, plan.select)
    yield from xglue_section(experiment, with_published=not _is_stand_in(experiment))
    yield from resource_section(experiment, rates, sizes)
    baselines = _baselines(experiment, source) if source else {}
    yield from language_section(experiment, sizes, baselines)
    recorded = [task for task in experiment.tasks if _has_curves(experiment, task)]
    if recorded:
        yield Heading("Learning curves")
    for task in recorded:
        yield picture(
            curves_name(task),
            f"{task}: learning curves; thin lines are runs, thick ones means over seeds",
            draw_curves(experiment.of(task), experiment.arms),
        )
    yield from origin_section(experiment)


def _has_curves(experiment: Experiment, task: str) -> bool:
    return any(run.result["history"] for run in experiment.of(task))


def _summary(experiment: Experiment, stand_in: bool, source: Source | None) -> Iterator[str]:
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
