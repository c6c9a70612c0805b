"""Laws of the demonstration: what it prints is what it measured, and it can be interrupted."""

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")
pytest.importorskip("matplotlib", reason="needs the extra xglue")
pytest.importorskip("scipy", reason="needs the extra xglue")

from graddrop.cli import main
from graddrop.xglue.commands.demo import DemoPlan, demo
from graddrop.xglue.mini import MiniSize
from graddrop.xglue.report.document import Block, Heading, Table, find_table
from graddrop.xglue.sweep.runner import SweepError
from graddrop.xglue.training.run_folder import RunFolderError

PLAN = DemoPlan(
    tasks=("pos",),
    methods=("standard", "graddrop"),
    seeds=(0,),
    size=MiniSize(train=40, dev=5, test=11, text_lines=100),
    pretraining={"hidden_size": 32, "layers": 1, "vocab_size": 400, "epochs": 0.5},
    finetuning={"max_steps": 6, "eval_steps": 3, "log_steps": 3, "batch_size": 8, "eval_all": True},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Block]]:
    """A demonstration of some seconds, and its report."""
    output = tmp_path_factory.mktemp("demo") / "output"
    return output, demo(output, PLAN)


def test_the_table_is_what_was_measured(finished: tuple[Path, list[Block]]) -> None:
    """Each number of the table is the stored one of its language, method and metric."""
    output, report = finished
    table = find_table(report, "pos-test-token_accuracy")
    arms = ["standard", "graddrop drop=0.5"]
    assert table.columns == ["language", "text (bytes)", "majority label", *arms]
    rows = {row[0]: row[1:] for row in table.rows}
    results = [
        json.loads((output / "runs" / f"pos-{name}-s0" / "result.json").read_text())
        for name in ("standard", "graddrop-p0.5")
    ]
    text = {path.stem: path.stat().st_size for path in (output / "data/text").iterdir()}
    languages = sorted(results[0]["scores"]["test"], key=lambda code: -text[code])
    assert list(rows) == [*languages, "mean", "zero-shot mean"]
    for code in languages:
        measured = [result["scores"]["test"][code]["token_accuracy"] for result in results]
        size, majority, *scores = rows[code]
        assert size == f"{text[code]:,}"
        assert 0 < float(majority) < 50
        assert scores == [f"{100 * score:.2f}" for score in measured]
    others = [float(rows[code][2]) for code in languages if code != "en"]
    assert float(rows["zero-shot mean"][2]) == pytest.approx(sum(others) / len(others), abs=0.01)


def test_a_second_call_repeats_nothing(finished: tuple[Path, list[Block]]) -> None:
    """Parts that are there are kept, lost ones are made again, and the report is the same."""
    output, report = finished
    kept = [output / "model/model.safetensors", output / "runs/pos-standard-s0/result.json"]
    before = [path.stat().st_mtime_ns for path in kept]
    page = (output / "report.html").read_bytes()
    for path in (output / "report.md", output / "report.html"):
        path.unlink()
    assert demo(output, PLAN) == report
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert (output / "report.html").read_bytes() == page
    assert (output / "report.md").exists()


def test_another_plan_is_refused(finished: tuple[Path, list[Block]]) -> None:
    """A folder holds one demonstration; another one is told what differs."""
    other = dataclasses.replace(PLAN, seeds=(0, 1))
    with pytest.raises(RunFolderError, match="seeds"):
        demo(finished[0], other)


def test_it_says_that_its_languages_are_invented(
    finished: tuple[Path, list[Block]], capsys: pytest.CaptureFixture[str]
) -> None:
    """In title, verdict, tables and last lines; it ends with what to open."""
    output, report = finished
    assert isinstance(report[0], Heading) and report[0].text.endswith("on invented languages")
    tables = [block for block in report if isinstance(block, Table)]
    scores = [table for table in tables if "score" in table.caption or "mean over" in table.caption]
    assert len(scores) >= 4 and all("(invented languages)" in table.caption for table in scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graddrop.xglue.commands.demo.DemoPlan", lambda: PLAN)
        assert main(["demo", "--output", str(output)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"Open {output / 'report.html'}"
    assert shown[-3].startswith("Verdict: on pos graddrop drop=0.5 less standard is ")
    assert "The languages are invented" in shown[-3]


def test_the_default_has_the_control_and_enough_seeds() -> None:
    """Without lr-matched a smaller step would pass for the masks' doing; two seeds have no test."""
    assert "lr-matched" in DemoPlan().methods and len(DemoPlan().seeds) >= 3


def test_a_failed_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which run failed, in a line, and ends with status 1."""

    def fail(*_: object) -> None:
        raise SweepError({tmp_path / "runs" / "pos-standard-s0": "out of memory"}, [])

    monkeypatch.setattr("graddrop.xglue.commands.demo.demo", fail)
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "pos-standard-s0: out of memory" in capsys.readouterr().err
