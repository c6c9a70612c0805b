"""Laws of the demonstration: what it prints is what it measured, and it can be interrupted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")
pytest.importorskip("matplotlib", reason="needs the extra xglue")

from matplotlib.image import imread

from graddrop.xglue.curves import curves, draw_curves
from graddrop.xglue.demo import DemoPlan, demo, demo_table, majority_scores
from graddrop.xglue.layout import read_file
from graddrop.xglue.mini import MiniSize
from graddrop.xglue.runfolder import RunFolderError
from graddrop.xglue.tasks import TASKS

PLAN = DemoPlan(
    tasks=("pos",),
    methods=("standard", "graddrop"),
    seeds=(0,),
    size=MiniSize(train=40, dev=5, test=11, text_lines=100),
    pretraining={"hidden_size": 32, "layers": 1, "vocab_size": 400, "epochs": 0.5},
    finetuning={"max_steps": 6, "eval_steps": 3, "log_steps": 3, "batch_size": 8, "eval_all": True},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A demonstration of some seconds, and its results."""
    output = tmp_path_factory.mktemp("demo") / "output"
    return output, demo(output, PLAN)


def test_the_table_is_what_was_measured(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    """Each number of the table is the stored one of its language, method and metric."""
    output, results = finished
    assert [result["config"]["method"] for result in results] == ["standard", "graddrop"]
    for result, name in zip(results, ("standard", "graddrop-p0.5"), strict=True):
        stored = output / "runs" / f"pos-{name}-s0" / "result.json"
        assert json.loads(stored.read_text()) == result
    rows = {
        cells[0]: cells[1:]
        for cells in map(str.split, (output / "table.txt").read_text().splitlines()[2:])
    }
    text = {path.stem: path.stat().st_size for path in (output / "data/text").iterdir()}
    languages = sorted(results[0]["scores"]["test"], key=lambda code: -text[code])
    assert list(rows) == [*languages, "zero-shot"]
    for code in languages:
        measured = [r["scores"]["test"][code]["token_accuracy"] for r in results]
        expected = [
            f"{text[code] / 1000:.0f}",
            rows[code][1],
            *(f"{100 * m:.1f}" for m in measured),
        ]
        assert rows[code] == expected
    others = [float(rows[code][2]) for code in languages if code != "en"]
    assert float(rows["zero-shot"][1]) == pytest.approx(sum(others) / len(others), abs=0.1)


def test_the_majority_baseline_is_a_constant_answer(
    finished: tuple[Path, list[dict[str, Any]]],
) -> None:
    """The baseline gives the most frequent English training tag to every word."""
    data = finished[0] / "data"
    task = TASKS["pos"]
    tags = [tag for e in read_file(task, data / task.path("train"), "train") for tag in e["tags"]]
    common = max(set(tags), key=tags.count)
    scores = majority_scores("pos", str(data))
    assert sorted(scores) == sorted(["en", "ru", "de", "fr", "es", "zh", "hi", "ur"])
    for code, score in scores.items():
        examples = read_file(task, data / task.path("test", code), "test")
        gold = [tag for example in examples for tag in example["tags"]]
        assert score == gold.count(common) / len(gold)
        assert 0 < score < 0.5


def test_a_second_call_repeats_nothing(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    """Parts that are there are kept, lost ones are made again, and the results are the same."""
    output, results = finished
    kept = [output / "model/model.safetensors", output / "runs/pos-standard-s0/result.json"]
    before = [path.stat().st_mtime_ns for path in kept]
    table = (output / "table.txt").read_bytes()
    (output / "table.txt").unlink()
    (output / "curves.png").unlink()
    assert demo(output, PLAN) == results
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert (output / "table.txt").read_bytes() == table
    assert (output / "curves.png").exists()


def test_another_plan_is_refused(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    """A folder holds one demonstration; another one is told what differs."""
    other = dataclasses.replace(PLAN, seeds=(0, 1))
    with pytest.raises(RunFolderError, match="seeds"):
        demo(finished[0], other)


def history(scores: list[tuple[int, dict[str, float]]]) -> list[dict[str, float]]:
    """A Trainer's log: a loss and the dev scores at some steps."""
    rows = []
    for step, by_language in scores:
        rows.append({"step": step, "loss": 1 / step, "learning_rate": 0.1})
        rows.append({"step": step, **{f"eval_{code}": s for code, s in by_language.items()}})
    return rows


def result(method: str, shift: float = 0.0) -> dict[str, Any]:
    """A result that holds no more than a figure and a table look at."""
    points = [(step, {"en": 0.8 + shift, "de": 0.4 + shift, "ru": 0.2}) for step in (10, 20)]
    for _, scores in points:
        scores["average"] = 9.9
    test = {code: {"accuracy": value} for code, value in points[0][1].items() if code != "average"}
    return {
        "task": "xnli",
        "metric": "accuracy",
        "config": {"method": method},
        "history": history(points),
        "scores": {"test": test},
    }


def test_curves_average_the_languages_that_were_not_trained_on() -> None:
    """English stands alone; the zero-shot curve is the unweighted mean of the others."""
    found = curves(result("standard", shift=0.1))
    assert found["loss"] == {10: 0.1, 20: 0.05}
    assert found["trained"] == pytest.approx({10: 90.0, 20: 90.0})
    assert found["zero-shot"] == pytest.approx({10: 35.0, 20: 35.0})


def test_a_table_averages_seeds() -> None:
    """A cell is the mean over the runs of a method; rows go from the most text to the least."""
    results = [result("standard"), result("standard", 0.2), result("graddrop")]
    majority, size = {"en": 0.35, "de": 0.35, "ru": 0.35}, {"en": 9000, "ru": 800, "de": 7100}
    rows = [line.split() for line in demo_table(results, majority, size).splitlines()]
    assert rows[1] == ["text", "kB", "majority", "standard", "graddrop"]
    assert rows[2] == ["en", "9", "35.0", "90.0", "80.0"]
    assert rows[3] == ["de", "7", "35.0", "50.0", "40.0"]
    assert rows[4] == ["ru", "1", "35.0", "20.0", "20.0"]
    assert rows[5] == ["zero-shot", "35.0", "35.0", "30.0"]


def test_the_figure_shows_every_method(tmp_path: Path) -> None:
    """A panel row per task, in a picture whose lines differ from those of fewer methods."""
    draw_curves([result("standard")], tmp_path / "one.png")
    draw_curves([result("standard"), result("graddrop", 0.1)], tmp_path / "two.png")
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert one.shape == two.shape
    assert one.shape[1] >= 1500

    def has_vermillion(picture: Any) -> bool:
        """Whether the second method's colour, #D55E00, occurs."""
        return bool(((picture[..., :3] * 255).round() == (213, 94, 0)).all(-1).any())

    assert has_vermillion(two)
    assert not has_vermillion(one)
    with pytest.raises(ValueError, match="no results"):
        draw_curves([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="at most 7 methods"):
        draw_curves([result(str(number)) for number in range(8)], tmp_path / "many.png")
