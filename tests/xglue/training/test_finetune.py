"""Laws of a fine-tuning run: what it writes, and what it refuses before it begins."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

from helpers.finetune_runs import config, trainer_of, write_data, write_sentences
from helpers.xglue_files import NO_REAL_DATA, REAL_DATA, write_archive

from graddrop.cli import main
from graddrop.xglue.data.layouts import DataError
from graddrop.xglue.tasks import get_task
from graddrop.xglue.training import run as train_module
from graddrop.xglue.training import trainer as trainer_module
from graddrop.xglue.training.run import FinetuneConfig, finetune
from graddrop.xglue.training.run_folder import RunFolderError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a toy grammar."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    finetune(config(data, folder))
    return folder


def test_a_run_writes_scores_of_every_language_found_and_names_the_missing(
    data: Path, finished: Path
) -> None:
    """Scores stand for what was found; other languages of the task are listed as missing."""
    folder = finished
    result = json.loads((folder / "result.json").read_text())
    assert sorted(result["scores"]["dev"]) == ["de", "en"]
    assert list(result["scores"]["test"]) == ["en"]
    assert "de" in result["missing"]["test"] and "de" not in result["missing"]["dev"]
    assert len(result["missing"]["dev"]) == len(get_task("pos").languages) - 2
    assert result["steps"] == 15
    assert result["mean"]["dev"]["token_accuracy"] == pytest.approx(
        sum(row["token_accuracy"] for row in result["scores"]["dev"].values()) / 2
    )
    assert sum("loss" in entry for entry in result["history"]) == 9  # one before each checkpoint
    assert json.loads((folder / "config.json").read_text()) == result["config"]
    assert not list(folder.glob("checkpoint-*"))


def test_a_run_learns(finished: Path) -> None:
    """The training loss falls; the toy grammar is learnt better than by the commonest tag."""
    result = json.loads((finished / "result.json").read_text())
    losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert result["scores"]["test"]["en"]["token_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("evaluate", "scored", "unread"),
    [
        (("dev",), {"dev": ["de", "en"], "test": []}, ["en.test"]),
        (("en-dev", "test"), {"dev": ["en"], "test": ["en"]}, ["de.dev"]),
        (("test",), {"dev": [], "test": ["en"]}, ["de.dev"]),
    ],
)
def test_only_what_is_to_be_scored_is_read(
    tmp_path: Path, evaluate: tuple[str, ...], scored: dict[str, list[str]], unread: list[str]
) -> None:
    """A tuning run knows nothing of test, a final one nothing of the other languages' dev."""
    data = write_data(tmp_path / "data")
    for name in unread:
        (data / "POS" / name).write_text("not a word of it")
    settings = {"data": str(data), "max_steps": 1, "batch_size": 4, "max_length": 32}
    file = tmp_path / "run.toml"
    file.write_text(f"evaluate = {json.dumps(evaluate)}\n")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = ["finetune", "--config", str(file), "--task", "pos", "--model", "tiny", *flags]
    assert main([*command, "--output", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert {split: sorted(rows) for split, rows in result["scores"].items()} == scored
    assert result["config"]["evaluate"] == list(evaluate)
    wanted = {"dev" if "dev" in evaluate else "", "test" if "test" in evaluate else ""} - {""}
    assert {split for split, absent in result["missing"].items() if absent} == wanted
    assert {split for split, means in result["mean"].items() if means} == {
        split for split, rows in scored.items() if rows
    }
    # Negative control: by default all is read.
    assert main([*command, "--evaluate", "dev", "test", "--output", str(tmp_path / "all")]) == 2


@pytest.mark.parametrize("eval_all", [False, True])
def test_a_dev_set_that_leaks_test_selects_nothing(
    tmp_path: Path, eval_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thai dev of POS is Thai test: it is no part of the average, and not looked at for it."""
    data = write_data(tmp_path / "data")
    write_sentences(data / "POS/th.dev", 3)
    trainer = trainer_of(config(data, tmp_path / "a", select="average-dev", eval_all=eval_all))
    made_up = {"de": 0.25, "en": 0.5, "th": 1.0}
    monkeypatch.setattr(
        trainer, "score", lambda entry, tags, code: {trainer.task.score: made_up[code]}
    )
    watched = {"de", "en", "th"} if eval_all else {"de", "en"}
    assert trainer.evaluations.keys() == watched
    scores = {f"eval_{code}": made_up[code] for code in watched}
    expected = {**scores, "eval_average": 0.375}
    assert expected.items() <= trainer.evaluate().items()
    with pytest.raises(DataError, match="not among the languages found; select=average-dev"):
        trainer_of(config(data, tmp_path / "b", select="average-dev", languages=("th",)))


def test_every_setting_arrives(tmp_path: Path) -> None:
    """At the Trainer or at the optimizer, under whatever name it has there."""
    run = config(
        write_data(tmp_path / "data"),
        tmp_path / "run",
        warmup_steps=3,
        max_grad_norm=0.25,
        seed=5,
        log_steps=4,
        eval_batch_size=3,
        accumulation=2,
        weight_decay=0.125,
        lr=2e-3,
        max_steps=7,
        patience=6,
        precision="bf16",
    )
    trainer = trainer_of(run)
    found = trainer.args
    assert (found.warmup_steps, found.seed, found.logging_steps) == (3, 5, 4)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (4, 2)
    assert (found.per_device_eval_batch_size, found.max_steps, found.bf16) == (3, 7, True)
    assert found.logging_nan_inf_filter is False and found.lr_scheduler_type == "linear"
    assert (found.metric_for_best_model, found.load_best_model_at_end) == ("eval_en", True)
    (patience,) = [
        callback.early_stopping_patience
        for callback in trainer.callback_handler.callbacks
        if hasattr(callback, "early_stopping_patience")
    ]
    assert patience == 6
    kind, values = trainer.optimizer_cls_and_kwargs
    optimizer = kind(**values)
    assert (optimizer.max_grad_norm, optimizer.param_groups[0]["lr"]) == (0.25, 2e-3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.125}
    assert {group["seed"] for group in optimizer.param_groups} == {5}


def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a file there is no folder; nor may one be made everywhere."""
    (tmp_path / "file").write_text("")
    run = config(data / "nowhere", tmp_path / "file/run", max_steps=1)
    with pytest.raises(OSError, match="Not a directory: '.*/file/run'"):
        finetune(run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _read_only)
        with pytest.raises(OSError, match="Read-only file system: '.*/other/run'"):
            finetune(dataclasses.replace(run, output=str(tmp_path / "other/run")))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def _read_only(path: Any, flags: int, *_: Any, **__: Any) -> int:
    raise OSError(30, "Read-only file system", path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("POS/de.dev", "the DET\ncat NOON\n", r"de\.dev:2: expected a label out of .*'NOON'"),
        ("POS/en.test", "", r"en\.test: empty; expected at least one example"),
        ("POS/en.dev", "\xff\n", r"en\.dev:1: expected UTF-8"),
    ],
)
def test_every_file_is_read_before_the_first_step(
    name: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the last language of the last split costs no training."""
    monkeypatch.setattr(train_module, "load_tokenizer", lambda *_: pytest.fail("went on"))
    data = write_data(tmp_path / "data")
    (data / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        finetune(config(data, tmp_path / "run", select="last"))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_ranked_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row makes no ranking, whether the file has no more or no more is asked for."""
    monkeypatch.setattr(train_module, "load_tokenizer", lambda *_: pytest.fail("went on"))
    data = write_archive(tmp_path / "data")
    run = config(data, tmp_path / "run", task="wpr", limit_eval=1)
    with pytest.raises(DataError, match=r"the first 1 rows of .*en\.dev: nDCG needs.*limit_eval"):
        finetune(run)
    (data / "WPR/xglue.wpr.en.test").write_text("a\tb\tc\t1\nd\te\tf\t2\n")
    with pytest.raises(DataError, match=r"^[^ ]*en\.test: nDCG needs a query with at least two"):
        finetune(dataclasses.replace(run, limit_eval=None))


def test_the_model_is_whole_or_absent(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full while it is written leaves no `model/`, and no result."""

    def save_a_part(self: Any, output_dir: str, *_: Any, **__: Any) -> None:
        save(self, output_dir)
        if "checkpoint" not in output_dir:
            raise OSError(28, "No space left on device")

    save = trainer_module.ZeroShotTrainer.save_model
    monkeypatch.setattr(trainer_module.ZeroShotTrainer, "save_model", save_a_part)
    run = config(data, tmp_path / "run", max_steps=2)
    with pytest.raises(OSError, match="No space left"):
        finetune(run)
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert not there & {"model", "result.json"} and "checkpoint-2" in there
    monkeypatch.undo()
    finetune(run, resume=True)
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_a_run_says_what_it_is_about_to_do(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model, method, rate, steps, place; and that random weights mean nothing."""
    finetune(config(data, tmp_path / "run", max_steps=1, drop_prob=0.25))
    shown = capsys.readouterr().err
    assert (
        f"pos: model tiny, method graddrop, p 0.25, lr 0.001, 1 steps on cpu, "
        f"output {tmp_path / 'run'}\nThe model is tiny, its weights are random: its scores mean"
    ) in shown
    pretrained = config(data, tmp_path / "other", max_steps=1, model=str(finished / "model"))
    finetune(pretrained)
    shown = capsys.readouterr().err
    assert f"pos: model {finished / 'model'}, method" in shown and "random" not in shown


def test_a_finished_run_is_not_repeated(
    data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `resume` its result is returned, nothing is trained, and what a kill has left goes."""
    (finished / "checkpoint-15").mkdir()
    monkeypatch.setattr(
        trainer_module.ZeroShotTrainer, "train", lambda *_, **__: pytest.fail("trained again")
    )
    result = finetune(config(data, finished), resume=True)
    assert result == json.loads((finished / "result.json").read_text())
    assert not (finished / "checkpoint-15").exists()


def test_trackers_keep_their_records(data: Path, tmp_path: Path) -> None:
    """TensorBoard's outlive the checkpoints; what cannot track is refused before anything."""
    pytest.importorskip("tensorboard", reason="needs the extra dev")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = config(data, tmp_path / "run", max_steps=4, report_to=("tensorboard",))
    result = finetune(run)
    (events,) = (tmp_path / "run/runs").rglob("events.out.tfevents.*")
    records = EventAccumulator(str(events)).Reload()
    losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
    assert [scalar.value for scalar in records.Scalars("train/loss")] == pytest.approx(losses)
    with pytest.raises(ValueError, match="'papyrus', which is unknown or not installed.*tensorb"):
        finetune(config(data, tmp_path / "other", report_to=("papyrus",)))
    assert not (tmp_path / "other").exists()


def test_a_folder_of_another_run_is_refused_and_unchanged(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    """The message names what differs; no file of the folder is touched."""

    def listing(folder: Path) -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))

    folder = finished
    before = listing(folder)
    with pytest.raises(
        RunFolderError, match=r"another configuration \(lr: there 0.001, asked 0.002"
    ):
        finetune(config(data, folder, lr=2e-3), resume=True)
    with pytest.raises(RunFolderError, match="finished run of this configuration; pass --resume"):
        finetune(config(data, folder))
    assert listing(folder) == before

    (tmp_path / "mine.txt").write_text("not a run")
    with pytest.raises(RunFolderError, match=r"not empty and holds no config\.json"):
        finetune(config(data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "poss"}, "unknown task 'poss'; expected one of ner, pos"),
        ({"method": "sgd"}, "unknown method 'sgd'; expected one of standard"),
        ({"drop_prob": 1.5}, r"drop_prob must be in \[0, 1\], got 1.5"),
        ({"drop_prob": float("nan")}, r"drop_prob must be in \[0, 1\], got nan"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": float("inf")}, "lr must be positive and finite, got inf"),
        ({"granularity": "column"}, "Invalid granularity: 'column': expected one of"),
        ({"period": "week"}, r"Invalid period: 'week': expected one of \('step', 'epoch', 'run'\)"),
        ({"period": 0}, "Invalid period: 0"),
        ({"site": "loss"}, "Invalid site: 'loss': expected one of"),
        ({"weight_decay": float("inf")}, "Invalid weight_decay value: inf"),
        ({"max_steps": 0}, "max_steps must be positive and finite, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), got -1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"method": "standard", "drop_prob": 0.5}, "method standard drops nothing; leave out"),
        ({"unfreeze_over": 1.5}, r"unfreeze_over must be in \(0, 1\], got 1.5"),
        ({"patience": 2, "select": "last"}, "patience needs a score to watch"),
        ({"write_predictions": True, "limit_eval": 5}, "write_predictions needs whole files"),
        ({"accumulation": 3}, "accumulation must divide batch_size, got 3 for 8"),
        ({"evaluate": ("de-dev",)}, "unknown evaluate 'de-dev'; expected one of dev, en-dev"),
        ({"evaluate": ("dev", "en-dev")}, "evaluate must name dev or en-dev.*got dev en-dev"),
        ({"evaluate": ()}, "evaluate must name dev or en-dev, or test.*got nothing"),
        ({"select": "test"}, "unknown select 'test'; expected one of en-dev"),
        ({"exempt": ("heads",)}, "unknown exempt 'heads'; expected one of head"),
        ({"languages": ("de", "xx")}, "task pos has no language 'xx'"),
        ({"model": "no/such/model"}, "no tokenizer could be loaded for model 'no/such/model'"),
        ({"max_length": 2}, "max_length must be at least 3, 2 of them special tokens; got 2"),
    ],
)
def test_bad_settings_are_named(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Every error says which value came and what was expected."""
    with pytest.raises(ValueError, match=message):
        finetune(config(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_what_stops_a_run_early_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    """A missing file is named; neither it nor a model that cannot be had makes a folder."""
    with pytest.raises(DataError, match=r"NER/en\.dev: not among the languages found"):
        finetune(config(data, tmp_path / "run", task="ner"))
    with pytest.raises(DataError, match=r"NER/en\.train: not there; expected the train set"):
        finetune(config(data, tmp_path / "run", task="ner", select="last"))
    with pytest.raises(DataError, match="no such folder"):
        finetune(config(data / "nowhere", tmp_path / "run"))
    with pytest.raises(ValueError, match="no tokenizer could be loaded for model 'no/such/model'"):
        finetune(config(data, tmp_path / "run", model="no/such/model"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not (REAL_DATA / "POS").is_dir(), reason=NO_REAL_DATA)
def test_real_files_run_end_to_end(tmp_path: Path) -> None:
    """A few steps on treebank sentences give a score in every language whose file is there."""
    result = finetune(
        FinetuneConfig(
            task="pos",
            data=str(REAL_DATA),
            output=str(tmp_path / "run"),
            max_steps=3,
            limit_train=100,
            limit_eval=10,
        )
    )
    there = {path.name.removesuffix(".dev") for path in (REAL_DATA / "POS").glob("*.dev")}
    assert set(result["scores"]["dev"]) == there
    assert all(0 <= row["token_accuracy"] <= 1 for row in result["scores"]["dev"].values())
