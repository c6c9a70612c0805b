"""Laws of which runs a report compares: whole ones of the same model and data, each once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")

from helpers.report_runs import put, qadsm

from graddrop.xglue.report.analysis_plan import AnalysisPlan
from graddrop.xglue.report.collect import ReportError, collect


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    """What has not finished is named; a model's own configuration is no run."""
    put(tmp_path / "deep/er", qadsm("standard", 0, 0.5))
    put(tmp_path, qadsm("graddrop", 0, 0.6))
    for name, file, content in (
        ("failed", "failure.json", {"error": "OSError: no room", "attempts": 2}),
        ("begun", "config.json", {"task": "pos", "method": "standard", "seed": 0}),
        ("model", "config.json", {"model_type": "xlm-roberta"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(content))
    found = collect(tmp_path)
    assert [run.name for run in found.runs] == [
        "deep/er/runs/qadsm-standard-0",
        "runs/qadsm-graddrop-0.5-0",
    ]
    assert found.failed == {"failed": "OSError: no room"}
    assert found.unfinished == ("begun",)


def test_a_setting_in_which_runs_differ_makes_arms(tmp_path: Path) -> None:
    """As the number of processes does, and a knob that was set by hand."""
    one, two = (qadsm("standard", n, 0.5, processes=n + 1) for n in (0, 1))
    found = collect(put(tmp_path / "processes", one, two))
    assert [arm.label for arm in found.arms] == ["standard processes=1", "standard processes=2"]
    by_preset, by_hand = (qadsm("graddrop", n, 0.5, rescale=(None, True)[n]) for n in (0, 1))
    found = collect(put(tmp_path / "rescale", by_preset, by_hand))
    labels = ["graddrop drop=0.5", "graddrop drop=0.5 rescale=true"]
    assert [arm.label for arm in found.arms] == labels


def test_runs_that_were_only_begun_are_counted(tmp_path: Path) -> None:
    """A folder of them is not said to hold none."""
    put(tmp_path, qadsm("standard", 0, 0.5))
    (tmp_path / "runs/qadsm-standard-0/result.json").unlink()
    with pytest.raises(ReportError, match="expected finished runs .*found 0 failed, 1 unfinished"):
        collect(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="expected finished runs .*found none"):
        collect(empty)


def test_a_finished_run_has_not_failed(tmp_path: Path) -> None:
    """A record of an earlier failure does not count against a result."""
    put(tmp_path, qadsm("standard", 0, 0.5))
    (tmp_path / "runs/qadsm-standard-0/failure.json").write_text('{"error": "once"}')
    assert collect(tmp_path).failed == {}


def _broken(change: Any) -> dict[str, Any]:
    result = qadsm("graddrop", 0, 0.5)
    change(result)
    return result


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "expected finished runs"),
        ([qadsm("standard", 0, 0.5, model="m"), qadsm("graddrop", 0, 0.5)], "share their model"),
        ([qadsm("standard", 0, 0.5, data="d"), qadsm("graddrop", 0, 0.5)], "share their data"),
        ([_broken(lambda r: r.pop("scores"))], "found no 'scores'"),
        ([_broken(lambda r: r["config"].update(method="magic"))], "unknown method 'magic'"),
        ([_broken(lambda r: r["config"].update(task="qg"))], "unknown task 'qg'"),
        (
            [qadsm("standard", 0, 0.5), _broken(lambda r: r["scores"]["test"].pop("fr"))],
            r"other languages \(test: fr\)",
        ),
    ],
)
def test_what_does_not_compare_is_refused(
    tmp_path: Path, results: list[dict[str, Any]], message: str
) -> None:
    """Each message says what was expected and names a folder."""
    put(tmp_path, *results)
    with pytest.raises(ReportError, match=message):
        collect(tmp_path)


ODD = (None, 3, "x", [], [1], {}, {"a": 1}, math.inf, -1, True, 10**400)
PARTS = {  # of a result, and what fits among these
    ("task",): (),
    ("config",): (),
    ("config", "task"): (),
    ("config", "method"): (),
    ("config", "seed"): (3, -1),
    ("config", "lr"): (3, -1),
    ("config", "drop_prob"): (None, [], [1]),
    ("config", "exempt"): ([],),
    ("config", "site"): (None, "x"),
    ("config", "model"): ("x",),
    ("config", "newer"): ODD,
    ("data",): ("x",),
    ("metric",): (),
    ("scores",): ({},),
    ("scores", "test"): ({},),
    ("scores", "test", "fr"): (),
    ("scores", "test", "fr", "accuracy"): (),
    ("steps",): (3, -1),
    ("parameters",): (3, -1),
    ("history",): ([],),
    ("history", 0): (),
    ("history", 0, "loss"): (3, math.inf, -1, 10**400),
    ("history", 0, "step"): (3, -1),
    ("seconds",): (),
    ("seconds", "train"): (3, -1),
    ("versions",): ({},),
    ("versions", "torch"): ("x",),
    ("commit",): (None, "x"),
}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_part_of_a_result_is_of_its_type(tmp_path: Path, part: tuple[Any, ...]) -> None:
    """Whoever wrote it: the file is named, with the part and what was found, before it is used."""
    for value in ODD:
        result = qadsm("graddrop", 0, 0.5, history=[{"loss": 1.0, "step": 1}])
        inner: Any = result
        for name in part[:-1]:
            inner = inner[name]
        inner[part[-1]] = value
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "run"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
        if any(value is fit or (type(value) is type(fit) and value == fit) for fit in PARTS[part]):
            collect(folder.parent)
            continue
        with pytest.raises(ReportError, match=r"run/result\.json: .*(expected|unknown)"):
            collect(folder.parent)


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    """A copy would count a seed twice; masks of a method that has none make no other run."""
    put(tmp_path / "a", qadsm("standard", 0, 0.5))
    put(tmp_path / "b", qadsm("standard", 0, 0.5, site="freeze", log_steps=3))
    with pytest.raises(ReportError, match="a/runs/qadsm-standard-0 and b/runs/qadsm-standard-0"):
        collect(tmp_path)
    with pytest.raises(ReportError, match="expected a folder"):
        collect(tmp_path / "c")


def test_a_report_is_about_the_runs_that_are_asked_for(tmp_path: Path) -> None:
    """Others are passed over before anything is compared."""
    put(tmp_path / "a", qadsm("standard", 0, 0.5, max_steps=5))
    put(tmp_path / "b", qadsm("standard", 0, 0.6, max_steps=6))
    assert len(collect(tmp_path).arms) == 2
    found = collect(tmp_path, AnalysisPlan(where={"max_steps": 6}).covers)
    assert [(run.arm.label, run.score("test")) for run in found.runs] == [("standard", 0.6)]
    with pytest.raises(ReportError, match="expected finished runs"):
        collect(tmp_path, AnalysisPlan(where={"max_steps": 7}).covers)
