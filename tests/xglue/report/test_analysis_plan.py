"""Laws of what a report decides: its plan, its verdict, and the one command that makes its page."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")
pytest.importorskip("matplotlib", reason="needs the extra xglue")

from helpers.report_runs import make_result

from graddrop.cli import main
from graddrop.xglue.report.analysis_plan import AnalysisPlan, Primary, read_analysis_plan
from graddrop.xglue.report.collect import Arm
from graddrop.xglue.report.comparison import EQUIVALENCE, Comparison
from graddrop.xglue.report.sections.differences import reading, verdict
from graddrop.xglue.report.statistics import estimate, paired_p
from graddrop.xglue.training.score_file import ScoreFile

STANDARD, GRADDROP = Arm("standard"), Arm("graddrop", 0.5)
PRIMARY = Primary("qam", "graddrop", "standard")


def comparison(*points: float, p_holm: float | None = None) -> Comparison:
    """A test of the confirmatory family whose pairs differ by so many points."""
    values = [value / 100 for value in points]
    p = paired_p(values)
    return Comparison(
        "qam",
        GRADDROP,
        STANDARD,
        dict(enumerate(values)),
        estimate(values),
        estimate(values, EQUIVALENCE),
        "primary",
        p,
        p if p_holm is None else p_holm,
    )


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ((1.0, 1.2, 0.8, 1.1, 0.9, 1.3, 0.7), "more"),
        ((-1.0, -1.2, -0.8, -1.1, -0.9, -1.3, -0.7), "less"),
        ((0.1, 0.12, 0.08, 0.11, 0.09, 0.13, 0.07), "more, by less than matters"),
        ((0.1, -0.12, 0.08, -0.11, 0.09, -0.13, 0.07), "no difference that matters"),
        ((2.0, -2.0, 2.0, -2.0, 0.0), "undecided, 128 pairs would show 0.5 points"),
        ((2.0,), "undecided"),
        ((2.0, 2.0), "undecided"),
    ],
)
def test_a_verdict_is_one_of_five(points: tuple[float, ...], said: str) -> None:
    """By test and margin: more, less, either by less than matters, no difference, or undecided."""
    plan = AnalysisPlan(primary=(PRIMARY,))
    found = comparison(*points)
    assert reading(found, plan) == said
    sentence = verdict([found], plan)
    assert sentence.startswith("Verdict: on qam graddrop drop=0.5 less standard is ")
    assert sentence.endswith(f": {said}.")


def test_the_margin_is_held_against_the_interval_of_90_percent() -> None:
    """Where that of 95 % would reach beyond it; and not where its own does."""
    found = comparison(0.3, -0.1, 0.5, 0.2, -0.2)  # mean 0.14, t(4): 2.132 and 2.776
    assert found.narrow.half_width is not None and found.difference.half_width is not None
    narrow, wide = (
        100 * e.half_width + 0.14 for e in (found.narrow, found.difference) if e.half_width
    )
    middle = (narrow + wide) / 2
    assert found.within(middle) and not found.within(narrow - 0.001)


def test_what_was_named_and_did_not_run_is_said() -> None:
    """The verdict has a part for each test of the family."""
    other = Primary("ner", "layer-graddrop", "standard")
    sentence = verdict([comparison(1.0, 2.0)], AnalysisPlan(primary=(PRIMARY, other)))
    assert "; on ner there is no pair of layer-graddrop and standard yet." in sentence
    assert verdict([], AnalysisPlan()).startswith("Verdict: none, since no masking method")


def test_one_command_makes_the_page_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file of scores: only the runs asked for, the languages named, figures beside it."""
    kept = ScoreFile(tmp_path / "runs.jsonl")
    for steps in (5, 6):
        for place, method in enumerate(("standard", "graddrop")):
            for seed in range(6):
                scores = {"en": 0.5, "de": 0.5 + place * (0.01 + 0.001 * seed), "fr": 0.1 * steps}
                kept.append(make_result("qam", method, seed, scores, max_steps=steps))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'title = "A study"\nmargin = 2\n[where]\nmax-steps = 6\n[languages]\nqam = ["de"]\n'
        '[[primary]]\ntask = "qam"\narm = "graddrop"\ncontrol = "standard"\n'
    )
    page = tmp_path / "docs/evidence.md"
    page.parent.mkdir()
    command = ["report", str(kept.path), "--plan", str(plan), "--output", str(page)]
    assert main(command) == 0
    text = page.read_text()
    assert text.startswith("# A study: 12 runs\n\nVerdict: on qam graddrop drop=0.5 less standard")
    assert "+1.25 points" in text and "p 0.031 after Holm" in text
    assert "more, by less than matters." in text.splitlines()[2]
    assert "](evidence-figures/differences.svg)" in text
    assert (page.parent / "evidence-figures/differences.svg").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "plan.toml", "runs.jsonl"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == str(page) and text.splitlines()[2] in shown
    assert "Learning curves" not in text  # a line has none


def test_a_plan_covers_runs_by_the_settings_of_all_tasks_and_of_their_own(tmp_path: Path) -> None:
    """A task that has no table is asked for what all are."""
    path = tmp_path / "plan.toml"
    path.write_text("[where]\nbatch-size = 16\nmax-steps = 5\n[where.qam]\nmax-steps = 9\n")
    covers = read_analysis_plan(path).covers
    assert covers({"task": "qam", "batch_size": 16, "max_steps": 9})
    assert not covers({"task": "qam", "batch_size": 16, "max_steps": 5})
    assert not covers({"task": "qam", "batch_size": 8, "max_steps": 9})
    assert covers({"task": "pos", "batch_size": 16, "max_steps": 5})
    assert not covers({"task": "pos", "batch_size": 16, "max_steps": 9})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mragin": 1}, "unknown setting 'mragin'; known: title, where, primary"),
        ({"margin": 0}, "margin: expected a positive number of points, got 0"),
        ({"margin": True}, "margin: expected a positive number"),
        ({"title": 3}, "title: expected a text, got 3"),
        ({"where": {"x": 1}}, "where: unknown setting 'x'"),
        ({"where": 3}, "where: expected a table of settings, got 3"),
        ({"where": {"qam": 3}}, "where.qam: expected a table of settings, got 3"),
        ({"where": {"qam": {"x": 1}}}, "where: unknown setting 'x'"),
        ({"primary": {"task": "qam"}}, r"primary: expected tables \[\[primary\]\]"),
        ({"primary": [{"task": "qam"}]}, "primary: expected task, arm and control"),
        (
            {"primary": [{"task": "x", "arm": "graddrop", "control": "standard"}]},
            "primary: expected a task and two names",
        ),
        ({"languages": {"qam": "de"}}, "languages: expected a list for qam, got 'de'"),
        ({"languages": {"qam": ["xx"]}}, "task qam has no language 'xx'"),
        ({"languages": {"x": ["de"]}}, "unknown task 'x'"),
        ({"languages": 3}, "languages: expected a list for each task, got 3"),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    """With the name of the file and of the setting."""
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(values))  # which is YAML, too
    with pytest.raises(ValueError, match=message) as error:
        read_analysis_plan(path)
    assert str(error.value).startswith(f"{path}: ")
