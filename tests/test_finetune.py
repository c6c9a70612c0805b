"""Laws of a fine-tuning run: what it writes, and that no interruption shows in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from safetensors.torch import load_file

from graddrop.cli import main
from graddrop.xglue import trainer as trainer_module
from graddrop.xglue.layout import DataError
from graddrop.xglue.runfolder import RunFolder, RunFolderError
from graddrop.xglue.tasks import get_task
from graddrop.xglue.train import FinetuneConfig, finetune

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("GRADDROP_DATA", REPOSITORY.parent / "shared" / "data")) / "xglue"

WORDS = {"DET": ("the", "a"), "NOUN": ("cat", "dog", "moon"), "VERB": ("sees", "eats")}


def write_sentences(path: Path, count: int) -> None:
    """Write sentences of a toy grammar in the layout of POS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = []
    for number in range(count):
        tags = ["DET", "NOUN", "VERB", "DET", "NOUN"][: 3 + 2 * (number % 2)]
        words = [WORDS[tag][(number + place) % len(WORDS[tag])] for place, tag in enumerate(tags)]
        sentences.append("".join(f"{w} {t}\n" for w, t in zip(words, tags, strict=True)))
    # As in the archive, no blank line after the last sentence.
    path.write_text("\n".join(sentences), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with toy POS files in two of the languages, one of them without a test set."""
    root = tmp_path_factory.mktemp("data")
    write_sentences(root / "POS/en.train", 37)
    for name, count in (("en.dev", 9), ("en.test", 7), ("de.dev", 5)):
        write_sentences(root / "POS" / name, count)
    return root


def config(data: Path, output: Path, **changes: Any) -> FinetuneConfig:
    """A run of 15 steps in 3 epochs of 5, with checkpoints inside of the epochs."""
    values: dict[str, Any] = {
        "task": "pos",
        "data": str(data),
        "output": str(output),
        "epochs": 3,
        "batch_size": 8,
        "lr": 1e-3,
        "save_steps": 2,
        "log_steps": 4,
        "max_length": 32,
    }
    return FinetuneConfig(**{**values, **changes})


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what the clock put into it."""
    kept = {name: value for name, value in result.items() if name != "seconds"}
    clocked = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    kept["history"] = [
        {name: value for name, value in entry.items() if name not in clocked}
        for entry in result["history"]
    ]
    return kept


def assert_same_run(first: Path, second: Path) -> None:
    """Assert that two output folders hold the same weights and results, bit for bit."""
    weights = [load_file(folder / "model/model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    assert without_times(results[0]) == without_times(results[1])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: how many there are may show in the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """An uninterrupted run, and copies of its folder as of each checkpoint."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    snapshots: list[Path] = []

    def seal_and_copy(checkpoint: Path, note: dict[str, Any]) -> None:
        seal(checkpoint, note)
        snapshots.append(folder.parent / f"after-{checkpoint.name}-{len(snapshots)}")
        shutil.copytree(folder, snapshots[-1])

    seal = trainer_module.seal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "seal", seal_and_copy)
        finetune(config(data, folder))
    return folder, snapshots


def test_a_run_writes_scores_of_every_language_found_and_names_the_missing(
    data: Path, finished: tuple[Path, list[Path]]
) -> None:
    """Scores stand for what was found; other languages of the task are listed as missing."""
    folder, _ = finished
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


def test_a_run_learns(finished: tuple[Path, list[Path]]) -> None:
    """The training loss falls; the toy grammar is learnt better than by the commonest tag."""
    result = json.loads((finished[0] / "result.json").read_text())
    losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert result["scores"]["test"]["en"]["token_accuracy"] > 0.5


def test_resume_from_any_checkpoint_equals_the_uninterrupted_run(
    data: Path, finished: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """In the middle of an epoch, at its end, after the last step: same weights, same scores."""
    folder, snapshots = finished
    steps = [int(snapshot.name.split("-")[2]) for snapshot in snapshots]
    assert {4, 5, 15} <= set(steps)
    for step in (4, 5, 15):
        run = tmp_path / str(step)
        shutil.copytree(snapshots[len(steps) - 1 - steps[::-1].index(step)], run)
        finetune(config(data, run), resume=True)
        assert_same_run(folder, run)


def test_half_written_checkpoints_are_passed_over(
    data: Path, finished: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """A checkpoint without seal, or with a file cut short, does not count."""
    folder, snapshots = finished
    run = tmp_path / "run"
    shutil.copytree(next(path for path in snapshots if "checkpoint-6-" in path.name), run)
    shutil.copytree(run / "checkpoint-6", run / "checkpoint-12")
    (run / "checkpoint-12/seal.json").unlink()
    shutil.copytree(run / "checkpoint-6", run / "checkpoint-14")
    weights = run / "checkpoint-14/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    finetune(config(data, run), resume=True)
    assert_same_run(folder, run)


def test_another_seed_is_another_run(
    data: Path, finished: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """Negative control of the comparison."""
    finetune(config(data, tmp_path / "run", seed=1))
    with pytest.raises(AssertionError):
        assert_same_run(finished[0], tmp_path / "run")


def test_resume_after_sigkill_equals_the_uninterrupted_run(
    data: Path, tmp_path: Path, one_thread: None
) -> None:
    """A process killed without warning leaves a folder that `--resume` completes exactly."""
    arguments = ["finetune", "--task", "pos", "--data", str(data), "--max-steps", "24"]
    arguments += ["--batch-size", "8", "--lr", "1e-3", "--save-steps", "4", "--max-length", "32"]
    folder = tmp_path / "killed"
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    killed = subprocess.Popen(
        [sys.executable, "-m", "graddrop.cli", *arguments, "--output", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    seal = folder / "checkpoint-4/seal.json"
    deadline = time.monotonic() + 600
    while not seal.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors.decode()
    assert (folder / "config.json").exists()
    assert not (folder / "result.json").exists()

    assert main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    assert main([*arguments, "--output", str(folder), "--resume"]) == 0
    assert_same_run(tmp_path / "whole", folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that makes a disk of so many kB, or gives the same disk another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(size: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={size}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tmpfs can be mounted here: {error}")
        mounted = True
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [1000, 2500])
def test_a_full_disk_is_said_and_survived(
    data: Path,
    finished: tuple[Path, list[Path]],
    small_disk: Callable[[int], Path],
    size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and status 2; with more room `--resume` completes the run exactly."""
    arguments = ["finetune", "--task", "pos", "--data", str(data), "--epochs", "3", "--lr", "1e-3"]
    arguments += ["--batch-size", "8", "--save-steps", "2", "--log-steps", "4"]
    arguments += ["--max-length", "32", "--output", str(small_disk(size) / "run")]
    assert main(arguments) == 2
    assert "could not be written" in capsys.readouterr().err
    folder = small_disk(20_000) / "run"
    assert not (folder / "result.json").exists()
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(finished[0], folder)


def test_two_runs_do_not_share_a_folder(data: Path, tmp_path: Path) -> None:
    """The second is refused while the first is at work, and not afterwards."""
    folder = RunFolder(tmp_path / "run")
    with (
        folder.at_work(),
        pytest.raises(RunFolderError, match="another process is at work in"),
    ):
        finetune(config(data, tmp_path / "run", max_steps=1))
    finetune(config(data, tmp_path / "run", max_steps=1))


def test_a_place_that_cannot_be_written_is_said(data: Path, tmp_path: Path) -> None:
    """Below a file there is no folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        finetune(config(data, tmp_path / "file/run", max_steps=1))


def test_a_finished_run_is_not_repeated(
    data: Path, finished: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `resume` its result is returned, and nothing is trained."""
    monkeypatch.setattr(
        trainer_module.ZeroShotTrainer, "train", lambda *_, **__: pytest.fail("trained again")
    )
    result = finetune(config(data, finished[0]), resume=True)
    assert result == json.loads((finished[0] / "result.json").read_text())


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
    data: Path, finished: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """The message names what differs; no file of the folder is touched."""

    def listing(folder: Path) -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))

    folder = finished[0]
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
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"max_steps": 0}, "max_steps must be positive, got 0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), got -1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"method": "standard", "drop_prob": 0.5}, "method standard drops nothing; leave out"),
        ({"unfreeze_over": 1.5}, r"unfreeze_over must be in \(0, 1\], got 1.5"),
        ({"patience": 2, "select": "last"}, "patience needs a score to watch"),
        ({"write_predictions": True, "limit_eval": 5}, "write_predictions needs whole files"),
        ({"accumulation": 3}, "accumulation must divide batch_size, got 3 for 8"),
        ({"select": "test"}, "unknown select 'test'; expected one of en-dev"),
        ({"exempt": ("heads",)}, "unknown exempt 'heads'; expected one of head"),
        ({"languages": ("de", "xx")}, "task pos has no language 'xx'"),
        ({"model": "no/such-model"}, "no tokenizer could be loaded for model 'no/such-model'"),
        ({"max_length": 2}, "max_length must be at least 3, 2 of them special tokens; got 2"),
    ],
)
def test_bad_settings_are_named(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Every error says which value came and what was expected."""
    with pytest.raises(ValueError, match=message):
        finetune(config(data, tmp_path / "run", **changes))


def test_what_stops_a_run_early_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    """A missing file is named; neither it nor a model that cannot be had makes a folder."""
    with pytest.raises(DataError, match=r"NER/en\.dev: not among the languages found"):
        finetune(config(data, tmp_path / "run", task="ner"))
    with pytest.raises(DataError, match=r"NER/en\.train: not there; expected the train set"):
        finetune(config(data, tmp_path / "run", task="ner", select="last"))
    with pytest.raises(DataError, match="no such folder"):
        finetune(config(data / "nowhere", tmp_path / "run"))
    with pytest.raises(ValueError, match="no tokenizer could be loaded for model 'no/such-model'"):
        finetune(config(data, tmp_path / "run", model="no/such-model"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(
    not (REAL_DATA / "POS").is_dir(), reason=f"no XGLUE files at {REAL_DATA} (GRADDROP_DATA)"
)
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
