"""Laws of the task table, and every task end to end."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

from helpers.xglue_files import NO_REAL_DATA, REAL_DATA, write_archive

from graddrop.cli import main
from graddrop.xglue.data.layouts import LAYOUTS
from graddrop.xglue.data.sources import FolderSource
from graddrop.xglue.heads import HEADS
from graddrop.xglue.scores.metrics import METRICS
from graddrop.xglue.tasks import TASKS, get_task
from graddrop.xglue.training.run import FinetuneConfig, finetune


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine toy tasks."""
    return write_archive(tmp_path_factory.mktemp("archive"))


def test_the_table_is_complete_and_sound() -> None:
    """Nine rows; what a row names is there; columns and languages are consistent."""
    assert list(TASKS) == ["ner", "pos", "nc", "mlqa", "xnli", "paws-x", "qadsm", "wpr", "qam"]
    for task in TASKS.values():
        assert task.layout in LAYOUTS and task.head in HEADS
        assert set(task.metrics) <= set(METRICS) and task.score == task.metrics[0]
        assert set(task.files) == {"train", "dev", "test"} and "en" in task.languages
        assert len(set(task.labels)) == len(task.labels)
        assert set(task.first) | set(task.second) <= set(task.columns)
        assert (task.head == "span") == (not task.labels)
    assert sum(len(task.languages) for task in TASKS.values()) == 66
    assert get_task("paws-x") is TASKS["paws-x"]
    with pytest.raises(ValueError, match="unknown task 'qg'; expected one of ner, pos"):
        get_task("qg")


PUBLISHED = {  # learning rate, epochs, batch, sub-words: for base models, for large ones
    "ner": ((5e-6, 20, 32, 256), (7e-6, 10, 32, 256)),
    "pos": ((2e-5, 20, 32, 128), (5e-6, 10, 32, 128)),
    "mlqa": ((3e-5, 2, 12, 384), (1.5e-5, 4, 32, 384)),
    "paws-x": ((5e-6, 10, 32, 256), (1e-5, 10, 32, 256)),
    "xnli": ((5e-6, 10, 32, 256), (5e-6, 10, 32, 256)),
    # Nobody has published one for large models.
    "nc": ((5e-6, 10, 32, 256),) * 2,
    "qadsm": ((5e-6, 10, 32, 256),) * 2,
    "wpr": ((5e-6, 10, 32, 256),) * 2,
    "qam": ((5e-6, 10, 32, 256),) * 2,
}


@pytest.mark.parametrize("name", TASKS)
def test_recipes_are_the_published_ones(name: str) -> None:
    """For base models unless asked; what a run sets itself goes before either."""
    names = ("lr", "epochs", "batch_size", "max_length")
    for recipe, expected in zip(("base", "large"), PUBLISHED[name], strict=True):
        found = FinetuneConfig(name, "data", "output", recipe=recipe).resolved()
        assert tuple(getattr(found, setting) for setting in names) == expected
    assert FinetuneConfig(name, "data", "output").recipe == "base"
    own = FinetuneConfig(name, "data", "output", recipe="large", lr=1.0, max_steps=3).resolved()
    assert (own.lr, own.epochs, own.max_steps) == (1.0, None, 3)
    with pytest.raises(ValueError, match="unknown recipe 'huge'; expected one of base, large"):
        FinetuneConfig(name, "data", "output", recipe="huge")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_end_to_end(name: str, root: Path, tmp_path: Path) -> None:
    """Train, evaluate, write predictions; scoring the files gives the run's own scores."""
    folder = tmp_path / "run"
    result = finetune(
        FinetuneConfig(
            task=name,
            data=str(root),
            output=str(folder),
            max_steps=2,
            batch_size=8,
            max_length=48,
            write_predictions=True,
        )
    )
    assert sorted(result["scores"]["dev"]) == ["de", "en"]
    assert list(result["scores"]["test"]) == ["en"]
    for split, languages in result["scores"].items():
        arguments = ["score", "--task", name, "--data", str(root), "--split", split]
        arguments += ["--predictions", str(folder / "predictions" / split)]
        assert main([*arguments, "--json", str(tmp_path / f"{split}.json")]) == 0
        assert json.loads((tmp_path / f"{split}.json").read_text()) == languages


def test_a_classifier_learns_its_labels(root: Path, tmp_path: Path) -> None:
    """The word that gives the label away is found, in the language that was not trained on too."""
    result = finetune(
        FinetuneConfig(
            task="xnli",
            data=str(root),
            output=str(tmp_path / "run"),
            max_steps=60,
            batch_size=8,
            lr=3e-3,
            max_length=32,
        )
    )
    assert min(row["accuracy"] for row in result["scores"]["dev"].values()) > 0.9


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=NO_REAL_DATA)
@pytest.mark.parametrize("name", ["ner", "xnli", "mlqa", "wpr"])
def test_real_files_give_scores(name: str, tmp_path: Path) -> None:
    """A few steps on a few examples of the files that are there."""
    task, source = TASKS[name], FolderSource(REAL_DATA)
    result = finetune(
        FinetuneConfig(
            task=name,
            data=str(REAL_DATA),
            output=str(tmp_path / "run"),
            max_steps=2,
            batch_size=4,
            limit_train=24,
            limit_eval=4,
            max_length=96,
            languages=("en", "de", "zh") if name != "ner" else (),
        )
    )
    wanted = task.languages if name == "ner" else ("en", "de", "zh")
    there = {language for language in wanted if source.has(task, "dev", language)}
    assert set(result["scores"]["dev"]) == there
