"""Laws of scores at equal cost."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")
pytest.importorskip("matplotlib", reason="needs the extra xglue")

from helpers.report_runs import make_result

from graddrop.xglue.report.analysis_plan import AnalysisPlan, read_analysis_plan
from graddrop.xglue.report.collect import Arm, Experiment, collect
from graddrop.xglue.report.frontier import frontier, interpolated
from graddrop.xglue.report.pictures.cost import draw_frontier
from graddrop.xglue.report.write import write_report
from graddrop.xglue.training.score_file import ScoreFile

PLAN = AnalysisPlan(
    languages={"qam": ("de",)}, cost={"layer-graddrop": 0.75, "lisa": 0.5, "head-only": 0.1}
)


def standard(steps: int, seed: int) -> float:
    """A score that is linear in the logarithm of the steps."""
    return 0.1 * math.log2(steps) + 0.01 * seed**2


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Standard fine-tuning for 16, 32 and 64 steps, and ways that cost 48, 32 and 6.4."""
    file = ScoreFile(tmp_path / "runs.jsonl")
    for seed in range(3):
        rows = [("standard", steps, standard(steps, seed)) for steps in (64, 16, 32)]
        rows.append(("layer-graddrop", 64, standard(48, seed) + 0.02 + 0.001 * seed))
        rows.append(("lisa", 64, standard(32, seed) - 0.03))
        rows.append(("head-only", 64, 0.2))
        rows.append(("graddrop", 64, 0.9))  # whose cost the plan does not know
        for method, steps, score in rows:
            found = {"en": 0.9, "de": score}
            file.append(make_result("qam", method, seed, found, max_steps=steps))
    return file.path


def test_an_arm_is_held_against_standard_at_its_cost(scores: Path) -> None:
    """Seed by seed: the curve of each differs by more than the arms do."""
    found = frontier(collect(scores), "qam", PLAN)
    names = [(entry.arm.method, entry.cost) for entry in found]
    curve = [("standard", cost) for cost in (16, 32, 64)]
    assert names == [*curve, ("head-only", 6.4), ("lisa", 32), ("layer-graddrop", 48)]
    *_, head, lisa, layer = found
    assert head.difference is None and head.standard is None  # beyond the ends of the curve
    assert lisa.difference is not None and layer.difference is not None
    assert lisa.difference.mean == pytest.approx(-0.03)
    assert layer.difference.mean == pytest.approx(0.021)
    assert layer.difference.n == 3
    half = layer.difference.half_width
    assert half is not None and half == pytest.approx(4.3027 * 0.001 / math.sqrt(3), rel=1e-4)
    assert all(entry.difference is None for entry in found[:3])


def test_between_two_runs_of_one_seed_alone() -> None:
    """Linear in the logarithm; nothing beyond the ends, or where the seed lacks a neighbour."""
    curve = {10.0: {0: 0.5, 1: 0.1}, 40.0: {0: 0.7}, 90.0: {0: 0.9, 1: 0.2}}
    assert interpolated(20.0, curve, 0) == pytest.approx(0.6)
    assert interpolated(40.0, curve, 0) == 0.7
    assert interpolated(60.0, curve, 0) == pytest.approx(0.8)
    assert interpolated(9.9, curve, 0) is None and interpolated(90.1, curve, 0) is None
    # Not between 10 and 90: runs of other seeds stand in between.
    assert interpolated(20.0, curve, 1) is None and interpolated(60.0, curve, 1) is None


def test_a_cost_is_named_by_label_or_by_method(tmp_path: Path) -> None:
    """The label wins, without what settings add to it."""
    file = ScoreFile(tmp_path / "runs.jsonl")
    for steps in (8, 9):
        for drop in (0.25, 0.5):
            file.append(
                make_result(
                    "qam", "layer-graddrop", 0, {"de": 0.5}, max_steps=steps, drop_prob=drop
                )
            )
    plan = AnalysisPlan(cost={"layer-graddrop drop=0.25": 0.5, "layer-graddrop": 2})
    costs = [entry.cost for entry in frontier(collect(file.path), "qam", plan)]
    assert costs == [4, 4.5, 16, 18]


def test_the_report_shows_it_where_the_plan_knows_costs(scores: Path, tmp_path: Path) -> None:
    """A table and a picture for each task; without costs neither."""
    plan = tmp_path / "plan.toml"
    plan.write_text('[languages]\nqam = ["de"]\n[cost]\nlisa = 0.5\nlayer-graddrop = 0.75\n')
    assert read_analysis_plan(plan).cost == {"lisa": 0.5, "layer-graddrop": 0.75}
    page = tmp_path / "page.md"
    write_report(scores, plan_file=plan, output=page)
    text = page.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| layer-graddrop drop=0.5 "))
    assert "| 48.0 |" in text and "+2.10" in text and "-3.00" in text, row
    assert (tmp_path / "page-figures/cost-qam.svg").is_file()
    assert "equal cost" in text
    write_report(scores, output=page)
    assert "equal cost" not in page.read_text()
    assert not (tmp_path / "page-figures/cost-qam.svg").exists()


def test_the_page_says_which_arms_lie_above_the_curve(scores: Path, tmp_path: Path) -> None:
    """By the interval at equal cost; what cannot be told from it is neither above nor below."""
    file = ScoreFile(scores)
    for seed, more in enumerate((-0.02, 0.0, 0.03)):
        for method, less in (("badam", 0.0), ("lora", 0.2)):
            found = {"en": 0.9, "de": standard(32, seed) + more - less}
            file.append(make_result("qam", method, seed, found, max_steps=64))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[languages]\nqam = ["de"]\n'
        "[cost]\nlora = 0.5\nbadam = 0.5\nlayer-graddrop = 0.75\nhead-only = 0.1\n"
    )
    write_report(scores, plan_file=plan, output=tmp_path / "page.md")
    (line,) = [x for x in (tmp_path / "page.md").read_text().splitlines() if x.startswith("On qam")]
    said = line.partition("difference: ")[2]
    assert said == (
        "above: layer-graddrop drop=0.5 (+2.10); neither above nor below: badam drop=0.916667 "
        "(+0.33); below: lora (-19.67)."
    )


def test_an_arm_far_below_does_not_squeeze_the_picture(scores: Path) -> None:
    """It stands at the lower edge, with its score in the legend; no two arms look the same."""
    found = frontier(collect(scores), "qam", PLAN)
    figure = draw_frontier(found)
    (axes,), (legend,) = figure.axes, figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        "standard",
        "head-only (20.0, below)",
        "lisa drop=0.833333",
        "layer-graddrop drop=0.5",
    ]
    assert 25 < axes.get_ylim()[0] < 100 * min(e.score.mean for e in found if e.score.mean > 0.3)
    many = [replace(found[-1], arm=Arm("graddrop", n / 100)) for n in range(40)]
    lines = [container[0] for container in draw_frontier(many).axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 40


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (3, "cost: expected a number for each arm, got 3"),
        ({"lisa": 0}, "cost: expected a positive number for lisa, got 0"),
        ({"lisa": True}, "cost: expected a positive number for lisa, got True"),
        ({"lisa": "half"}, "cost: expected a positive number for lisa, got 'half'"),
    ],
)
def test_bad_costs_are_refused(tmp_path: Path, cost: object, message: str) -> None:
    """With the name of the file."""
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"cost": cost}))
    with pytest.raises(ValueError, match=message) as error:
        read_analysis_plan(path)
    assert str(path) in str(error.value)


def test_an_experiment_without_the_task_has_no_frontier(scores: Path) -> None:
    """Nothing is held against nothing."""
    found: Experiment = collect(scores)
    assert frontier(found, "qam", AnalysisPlan()) == [
        entry for entry in frontier(found, "qam", PLAN) if entry.arm.method == "standard"
    ]
