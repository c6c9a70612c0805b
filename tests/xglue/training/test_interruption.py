"""Laws of interruptions: whenever a run is killed, nothing of it shows in what it comes to."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.root import ROOT

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import torch
from helpers.finetune_runs import assert_same_run, config, write_data
from transformers import TrainerControl, TrainerState, TrainingArguments

from graddrop.cli import INTERRUPTED, main
from graddrop.xglue.training import run as train_module
from graddrop.xglue.training import trainer as trainer_module
from graddrop.xglue.training.callbacks import Checkpoints
from graddrop.xglue.training.run import finetune
from graddrop.xglue.training.run_folder import RunFolder, RunFolderBusyError, RunFolderError


class Moment(NamedTuple):
    """When a checkpoint has just been sealed: its step, the last whole one before, the folder."""

    step: int
    before: int | None
    copy: Path


class Finished(NamedTuple):
    """An uninterrupted run, and all its moments."""

    folder: Path
    moments: list[Moment]

    def copy_of(self, step: int) -> Path:
        """The folder as it was when a checkpoint had been sealed."""
        (moment,) = [moment for moment in self.moments if moment.step == step]
        return moment.copy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a toy grammar."""
    return write_data(tmp_path_factory.mktemp("data"))


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of three epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    moments: list[Moment] = []

    def seal_and_copy(checkpoint: Path, note: dict[str, Any]) -> None:
        last = RunFolder(folder).last_checkpoint()
        seal(checkpoint, note)
        copy = folder.parent / f"{checkpoint.name}-{len(moments)}"
        moments.append(Moment(step_of(checkpoint), step_of(last) if last else None, copy))
        shutil.copytree(folder, copy)

    seal = trainer_module.seal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "seal", seal_and_copy)
        finetune(config(data, folder))
    return Finished(folder, moments)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: how many there are may show in the last bit of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_there_is_always_the_last_whole_checkpoint(finished: Finished) -> None:
    """Each is written once, and the one before it goes only when it is whole."""
    steps = [moment.step for moment in finished.moments]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert [moment.before for moment in finished.moments] == [None, *steps[:-1]]


def test_resume_from_any_checkpoint_equals_the_uninterrupted_run(
    data: Path, finished: Finished, tmp_path: Path
) -> None:
    """In the middle of the first and second epoch, at an end, after the last step: same results."""
    for step in (4, 5, 8, 15):
        run = tmp_path / str(step)
        shutil.copytree(finished.copy_of(step), run)
        finetune(config(data, run), resume=True)
        assert_same_run(finished.folder, run)


def test_what_was_counted_before_a_kill_counts_after_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations without a better score, for `patience`, and the seconds of all attempts."""
    values: dict[str, Any] = {"epochs": 6, "lr": 1e-12, "patience": 2}
    seal = trainer_module.seal

    def seal_and_copy(checkpoint: Path, note: dict[str, Any]) -> None:
        seal(checkpoint, {**note, "seconds": 1000.0})
        if step_of(checkpoint) == 10:  # after the first evaluation without a gain
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")

    monkeypatch.setattr(trainer_module, "seal", seal_and_copy)
    whole = finetune(config(data, tmp_path / "whole", **values))
    assert whole["steps"] == 15
    resumed = finetune(config(data, tmp_path / "resumed", **values), resume=True)
    assert resumed["steps"] == 15
    assert resumed["seconds"]["train"] > 1000 > whole["seconds"]["train"]


@pytest.mark.parametrize(
    ("strategy", "epoch", "stops", "asks"),
    [
        ("epoch", 1.5, False, True),
        ("epoch", 2.0, False, False),
        ("epoch", 1.5, True, False),
        # With evaluations by steps nothing follows at an epoch's end.
        ("steps", 2.0, False, True),
        ("steps", 1.5, True, True),
    ],
)
def test_no_checkpoint_comes_before_its_epochs_evaluation(
    strategy: str, epoch: float, stops: bool, asks: bool, tmp_path: Path
) -> None:
    """Where an epoch ends, also by the last step, its own checkpoint is the only one."""
    args = TrainingArguments(str(tmp_path), save_strategy=strategy, use_cpu=True, report_to=[])
    control = TrainerControl(should_training_stop=stops)
    state = TrainerState(global_step=6, epoch=epoch)
    Checkpoints(3).on_step_end(args, state, control)
    assert control.should_save == asks
    Checkpoints(4).on_step_end(args, state, other := TrainerControl())
    assert not other.should_save


def test_half_written_checkpoints_are_passed_over(
    data: Path, finished: Finished, tmp_path: Path
) -> None:
    """A checkpoint without seal, or with a file cut short, does not count."""
    run = tmp_path / "run"
    shutil.copytree(finished.copy_of(6), run)
    shutil.copytree(run / "checkpoint-6", run / "checkpoint-12")
    (run / "checkpoint-12/seal.json").unlink()
    shutil.copytree(run / "checkpoint-6", run / "checkpoint-14")
    weights = run / "checkpoint-14/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    finetune(config(data, run), resume=True)
    assert_same_run(finished.folder, run)


def test_another_seed_is_another_run(data: Path, finished: Finished, tmp_path: Path) -> None:
    """Negative control of the comparison."""
    finetune(config(data, tmp_path / "run", seed=1))
    with pytest.raises(AssertionError):
        assert_same_run(finished.folder, tmp_path / "run")


def test_resume_after_sigkill_equals_the_uninterrupted_run(
    data: Path, tmp_path: Path, one_thread: None
) -> None:
    """Killed without warning in the second epoch it leaves what `--resume` completes exactly."""
    arguments = ["finetune", "--task", "pos", "--data", str(data), "--max-steps", "24"]
    arguments += ["--batch-size", "8", "--lr", "1e-3", "--save-steps", "4", "--max-length", "32"]
    folder = tmp_path / "killed"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    killed = subprocess.Popen(
        [sys.executable, "-m", "graddrop.cli", *arguments, "--output", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    seal = folder / "checkpoint-8/seal.json"
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


def test_resume_after_ctrl_c_equals_the_uninterrupted_run(
    data: Path,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said in a line what goes on, without a traceback, and it does."""

    def seal_and_interrupt(checkpoint: Path, note: dict[str, Any]) -> None:
        seal(checkpoint, note)
        if checkpoint.name == "checkpoint-6":
            signal.raise_signal(signal.SIGINT)

    seal = trainer_module.seal
    values = config(data, tmp_path / "run")
    (tmp_path / "run.toml").write_text(
        "".join(
            f"{name} = {json.dumps(getattr(values, name))}\n"
            for name in ("task", "data", "output", "epochs", "batch_size", "lr")
        )
        + f"save_steps = 2\nlog_steps = 4\nmax_length = {values.max_length}\n"
    )
    # What a shell starts in the background ignores the signal, and so would these tests there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, "seal", seal_and_interrupt)
            assert main(["finetune", "--config", str(tmp_path / "run.toml")]) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.endswith(
        "\ngraddrop finetune: interrupted; the same command with --resume goes on\n"
    )
    assert main(["finetune", "--config", str(tmp_path / "run.toml"), "--resume"]) == 0
    assert_same_run(finished.folder, tmp_path / "run")


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
    finished: Finished,
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
    assert_same_run(finished.folder, folder)


def test_two_runs_do_not_share_a_folder(data: Path, tmp_path: Path) -> None:
    """The second is refused while the first is at work, and not afterwards."""
    folder = RunFolder(tmp_path / "run")
    with (
        folder.at_work(),
        pytest.raises(RunFolderError, match="another process is at work in"),
    ):
        finetune(config(data, tmp_path / "run", max_steps=1))
    finetune(config(data, tmp_path / "run", max_steps=1))


def test_what_another_process_did_meanwhile_is_left_alone(
    data: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was finished, or gone on with, while this one loaded its model is not redone."""
    folder = tmp_path / "run"
    shutil.copytree(finished.copy_of(4), folder)
    load_model = train_module.load_model

    def load_slowly(*arguments: Any) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(later, folder)
        return load_model(*arguments)

    monkeypatch.setattr(train_module, "load_model", load_slowly)
    for later in (finished.copy_of(6), finished.folder):
        with pytest.raises(RunFolderBusyError, match="another process was at work in"):
            finetune(config(data, folder), resume=True)
        names = {path.name for path in folder.iterdir()} - {".lock"}
        assert names == {path.name for path in later.iterdir()} - {".lock"}
    (later := tmp_path / "later").mkdir()
    RunFolder(later).claim({"lr": 1})
    shutil.rmtree(folder)
    with pytest.raises(RunFolderError, match="holds a run of another configuration"):
        finetune(config(data, folder), resume=True)
