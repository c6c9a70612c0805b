"""Laws of the report's figures: every arm is seen, told apart and named."""

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")
pytest.importorskip("matplotlib", reason="needs the extra xglue")

from helpers.report_runs import HISTORY, make_result
from matplotlib.figure import Figure

from graddrop.xglue.report.collect import Arm, Run
from graddrop.xglue.report.gains import Gains
from graddrop.xglue.report.pictures.curves import curves, draw_curves
from graddrop.xglue.report.pictures.scatter import _candidates, _overlap, draw_gains
from graddrop.xglue.report.pictures.style import line_style, picture
from graddrop.xglue.report.textsizes import TextSizes


def test_a_dollar_is_mathematics_on_a_logarithmic_axis_alone() -> None:
    """Names are shown as they are; the ticks within a decade keep their powers of ten."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([30, 60], [0, 1])
    axes.set_xscale("log")
    axes.set_title("$a$")
    picture("some", "", figure)
    ticks = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
    assert ticks and all(label.get_parse_math() for label in ticks)
    assert not axes.title.get_parse_math()


def test_curves_average_the_languages_that_were_not_trained_on() -> None:
    """English stands alone; the zero-shot curve is the unweighted mean of the others."""
    found = curves({"history": HISTORY})
    assert found["loss"] == {10: 0.1, 20: 0.05}
    assert found["trained"] == pytest.approx({10: 80.0, 20: 80.0})
    assert found["zero-shot"] == pytest.approx({10: 30.0, 20: 30.0})


def test_every_line_looks_different() -> None:
    """Forty-nine arms are told apart; the first seven by colour and by dashes."""
    styles = [line_style(index) for index in range(49)]
    assert len(set(styles)) == 49
    for part in zip(*styles[:7], strict=True):
        assert len(set(part)) == 7


def test_more_arms_than_colours_are_drawn() -> None:
    """Eight arms make eight lines; without evaluations only the loss has a panel."""
    arms = [Arm("graddrop", rate / 10) for rate in range(8)]
    losses = [row for row in HISTORY if "loss" in row]
    runs = [
        Run(str(arm), arm, make_result("qam", "graddrop", 0, {"en": 0.5}, history=losses))
        for arm in arms
    ]
    figure = draw_curves(runs, arms)
    assert [len(axes.get_lines()) for axes in figure.axes] == [8]
    assert b"#d55e00" in picture("all", "", figure).files["svg"]
    one = picture("one", "", draw_curves(runs[:1], arms))
    assert b"#d55e00" not in one.files["svg"]  # negative control: the second's


def test_a_curve_of_one_point_is_seen() -> None:
    """It has a marker, longer ones have none; steps are whole numbers."""
    for steps, marker in ((1, "o"), (2, "None")):
        history = [{"step": step + 1, "loss": 1.0 / (step + 1)} for step in range(steps)]
        result = make_result("qam", "graddrop", 0, {"en": 0.5}, history=history)
        [axes] = draw_curves([Run("r", Arm("graddrop", 0.5), result)], [Arm("graddrop", 0.5)]).axes
        [line] = axes.get_lines()
        assert line.get_marker() == marker
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_an_arm_without_sizes_is_drawn_without_points() -> None:
    """Beside one whose languages have a known size."""
    standard, places = Arm("standard"), {"de": 1, "fr": 1}
    known = Gains(Arm("graddrop", 0.5), standard, None, {"de": 0.01, "fr": 0.02}, places, (3, 3))
    unknown = Gains(Arm("layer-graddrop", 0.5), standard, None, {"sw": 0.1}, {"sw": 1}, (3, 3))
    figure = draw_gains([known, unknown], TextSizes({"de": 1.0, "fr": 2.0}, "GiB", "a file"))
    drawn = [len(axes.collections[0].get_offsets()) for axes in figure.axes[:2]]
    assert drawn == [2, 0]


def test_labels_keep_clear_of_each_other() -> None:
    """Beside an occupied place there is a free one; the overlap of boxes is their common area."""
    assert _overlap((0, 0, 10, 10), [(5, 5, 20, 20), (10, 0, 12, 3)]) == 25
    taken = [(-8.0, 3.0, 8.0, 14.0)]  # what is written above the point
    places = [box for _, box in _candidates(0, 0, 12, 9)]
    assert _overlap(places[0], taken) > 0
    assert min(_overlap(box, taken) for box in places) == 0
