"""Laws of a sweep: whatever happens to it or to some of its runs, the others come to their end."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import psutil
from helpers.report_runs import make_result
from helpers.xglue_files import write_archive
from helpers.zygote import Zygote, zygote

from graddrop.cli import main
from graddrop.xglue.sweep import runner
from graddrop.xglue.sweep.plan import SweepPlan
from graddrop.xglue.sweep.workers import Outcome
from graddrop.xglue.training.run_folder import RunFolder
from graddrop.xglue.training.seal import SEAL_FILE

PATIENCE = 30.0
"""Seconds after which what should have happened will not."""


@pytest.fixture(scope="module")
def sweeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A process that starts commands at once."""
    with zygote(tmp_path_factory.mktemp("cache")) as process:
        yield process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks but NER."""
    root = write_archive(tmp_path_factory.mktemp("data"))
    (root / "NER").rename(root / "later")
    return root


def write_plan(path: Path, data: Path, **changes: Any) -> Path:
    """Two methods and two seeds of POS, with a checkpoint after each of some steps."""
    values = {
        "data": str(data),
        "tasks": ["pos"],
        "arms": ["standard", "graddrop"],
        "seeds": [0, 1],
        "max_steps": 7,
        "save_steps": 1,
        "batch_size": 8,
        "lr": 1e-3,
        "max_length": 32,
    } | changes
    # What JSON writes of these is TOML.
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


def until(happened: Callable[[], Any]) -> Any:
    """Wait for something; return what it is."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


def training(run: Path) -> bool:
    """Whether a run has come as far as a whole checkpoint."""
    return RunFolder(run).last_checkpoint() is not None


def workers(process: int) -> list[psutil.Process]:
    """The workers of a sweep."""
    return psutil.Process(process).children()


def assert_whole(output: Path) -> int:
    """Assert that every JSON file is whole, other than drafts; return how many there are."""
    drafts = {file.parent for file in output.rglob("checkpoint-*/*")}
    drafts = {folder for folder in drafts if not (folder / SEAL_FILE).exists()}
    count = 0
    for file in output.rglob("*.json"):
        if file.parent not in drafts and file.parent.name != "model.tmp":
            json.loads(file.read_text())
            count += 1
    return count


def outcomes(output: Path) -> dict[str, Any]:
    """What the runs of a sweep have come to, without what the clock put into it."""
    found = {}
    for file in output.glob("runs/*/result.json"):
        result = json.loads(file.read_text())
        kept = {name: result[name] for name in ("config", "scores", "steps", "selected_step")}
        kept["losses"] = [row["loss"] for row in result["history"] if "loss" in row]
        kept["weights"] = (file.parent / "model/model.safetensors").read_bytes()
        found[file.parent.name] = kept
    return found


def test_kills_at_random_moments_do_not_show(sweeper: Zygote, data: Path, tmp_path: Path) -> None:
    """All processes are killed at once, again and again: only whole files, and the same results."""
    plan = write_plan(tmp_path / "plan.toml", data)
    whole, screen = tmp_path / "whole", tmp_path / "screen"
    arguments = ["sweep", plan, "--workers", "2", "--output"]
    began = time.monotonic()
    assert sweeper.run([*arguments, whole], screen) == 0, screen.read_text()
    longest = 0.6 * (time.monotonic() - began)
    expected = outcomes(whole)
    assert len(expected) == 4

    rng = random.Random(0)
    kills = kills_in_training = outputs = 0
    # The machine may be faster or slower than a moment ago: until enough was at stake.
    while kills < 6 or kills_in_training < 2:
        assert kills < 20 and outputs < 6
        killed = tmp_path / f"killed-{outputs}"
        process = sweeper.start([*arguments, killed], screen)
        time.sleep(rng.uniform(0.0, longest))
        os.killpg(process, signal.SIGKILL)
        status = sweeper.wait(process)
        # The workers die a moment later, long before anybody could type the command again.
        folders = [killed, *killed.glob("runs/*/")]
        until(lambda folders=folders: not any(RunFolder(folder).is_busy() for folder in folders))
        if status == -signal.SIGKILL:
            kills += 1
            kills_in_training += any(training(run) for run in killed.glob("runs/*/"))
            assert_whole(killed)
            longest *= 1.1
        else:
            assert status == 0, screen.read_text()
            assert outcomes(killed) == expected
            outputs += 1
            longest /= 2
    assert sweeper.run([*arguments, killed], screen) == 0, screen.read_text()
    assert assert_whole(killed) >= 8
    assert outcomes(killed) == expected
    # Control: the comparison sees another seed.
    first, second = (dict(expected[f"pos-standard-s{seed}"]) for seed in (0, 1))
    assert first["weights"] != second["weights"] and first["losses"] != second["losses"]


def test_a_failed_run_stops_no_other_and_is_tried_again(
    sweeper: Zygote, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is recorded with its traceback and its attempts; what mends it also clears the record."""
    plan = write_plan(tmp_path / "plan.toml", data, tasks=["ner", "pos"], seeds=[0])
    output, screen = tmp_path / "output", tmp_path / "screen"
    arguments = ["sweep", str(plan), "--workers", "1", "--output", str(output)]
    failure = output / "runs/ner-standard-s0/failure.json"
    for attempts in (1, 2):
        assert sweeper.run(arguments, screen) == 1
        record = json.loads(failure.read_text())
        assert record["attempts"] == attempts
        assert record["error"].startswith("graddrop.xglue.data.layouts.DataError: ")
        assert record["traceback"].startswith("Traceback (most recent call last)")
        assert sorted(outcomes(output)) == ["pos-graddrop-p0.5-s0", "pos-standard-s0"]
    shown = screen.read_text()
    assert "2 failed" in shown and f"failed: {failure.parent}: {record['error']}" in shown
    assert main([*arguments, "--dry-run"]) == 0
    states = capsys.readouterr().out.splitlines()
    assert states[0] == f"ner-standard-s0: failed (2 x): {record['error']}"
    assert states[2] == "pos-standard-s0: finished"

    (data / "later").rename(data / "NER")
    # As of a kill just after the result was written.
    (left := output / "runs/pos-standard-s0/checkpoint-7").mkdir()
    assert sweeper.run(arguments, screen) == 0, screen.read_text()
    (data / "NER").rename(data / "later")
    assert len(outcomes(output)) == 4
    assert not list(output.rglob("failure.json"))
    assert not left.exists()


def test_scores_outlive_the_folders(sweeper: Zygote, data: Path, tmp_path: Path) -> None:
    """A run that the file holds is not run again, from a finished folder it gets into the file."""
    output, screen, scores = tmp_path / "output", tmp_path / "screen", tmp_path / "runs.jsonl"
    arguments: list[Any] = ["sweep", "--workers", "1", "--output", output]
    arguments = [
        *arguments,
        write_plan(tmp_path / "one.toml", data, arms=["standard"], max_steps=2),
    ]
    assert sweeper.run(arguments, screen) == 0, screen.read_text()
    both = write_plan(tmp_path / "both.toml", data, max_steps=2)
    arguments = [*arguments[:-1], both, "--scores", scores]
    assert sweeper.run(arguments, screen) == 0, screen.read_text()
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in lines] == [
        ("standard", 0),
        ("standard", 1),
        ("graddrop", 0),
        ("graddrop", 1),
    ]
    [result] = [json.loads(f.read_text()) for f in output.glob("runs/pos-graddrop-p0.5-s1/r*.json")]
    assert lines[-1]["scores"] == result["scores"] and lines[-1]["steps"] == 2
    assert lines[-1]["versions"] == result["versions"] and lines[-1]["commit"] == result["commit"]

    shutil.rmtree(output)
    assert sweeper.run(arguments, screen) == 0, screen.read_text()
    assert not output.exists() and "4 runs finished" in screen.read_text()
    more = write_plan(tmp_path / "more.toml", data, max_steps=2, seeds=[0, 1, 2], arms=["standard"])
    assert sweeper.run([*arguments[:-3], more, "--scores", scores], screen) == 0
    assert [path.name for path in output.glob("runs/*/")] == ["pos-standard-s2"]
    assert len(scores.read_text().splitlines()) == 5


def test_a_killed_worker_is_replaced(sweeper: Zygote, data: Path, tmp_path: Path) -> None:
    """As by the system when memory runs out: its run has failed, the others go on."""
    plan = write_plan(tmp_path / "plan.toml", data, max_steps=12)
    output, screen = tmp_path / "output", tmp_path / "screen"
    arguments = ["sweep", plan, "--workers", "1", "--output", output]
    process = sweeper.start(arguments, screen)
    first = output / "runs/pos-standard-s0"
    until(lambda: training(first))
    [worker] = workers(process)
    worker.kill()
    assert sweeper.wait(process) == 1
    record = json.loads((first / "failure.json").read_text())
    assert "killed by SIGKILL, as the system does when memory runs out" in record["error"]
    assert len(outcomes(output)) == 3
    assert sweeper.run(arguments, screen) == 0, screen.read_text()
    assert len(outcomes(output)) == 4


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_can_be_interrupted(
    sweeper: Zygote, data: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C, which the terminal sends to every process, and SIGTERM end all within seconds."""
    plan = write_plan(tmp_path / "plan.toml", data, max_steps=5000)
    output = tmp_path / "output"
    process = sweeper.start(
        ["sweep", plan, "--workers", "2", "--output", output], tmp_path / "screen"
    )
    until(lambda: training(output / "runs/pos-standard-s0"))
    children = workers(process)
    assert len(children) == 2
    (os.killpg if number == signal.SIGINT else os.kill)(process, number)
    began = time.monotonic()
    assert sweeper.wait(process) == status, (tmp_path / "screen").read_text()
    assert time.monotonic() - began < 10
    assert not any(child.is_running() for child in children)
    assert_whole(output)
    assert not list(output.rglob("failure.json"))
    assert "Traceback" not in (tmp_path / "screen").read_text()


def test_a_run_at_work_elsewhere_is_left_to_it(sweeper: Zygote, data: Path, tmp_path: Path) -> None:
    """It does not count as failed; a second sweep in the same output is refused as a whole."""
    plan = write_plan(tmp_path / "plan.toml", data, seeds=[0])
    output, screen = tmp_path / "output", tmp_path / "screen"
    arguments = ["sweep", plan, "--workers", "1", "--output", output]
    held = RunFolder(output / "runs/pos-standard-s0")
    with held.at_work():
        assert sweeper.run(arguments, screen) == 0
        assert f"left to another process: {held.path}" in screen.read_text()
        assert list(outcomes(output)) == ["pos-graddrop-p0.5-s0"]
    with RunFolder(output).at_work():
        assert sweeper.run(arguments, screen) == 2
        assert f"another process is at work in {output}" in screen.read_text()
    assert sweeper.run(arguments, screen) == 0
    assert len(outcomes(output)) == 2
    assert not list(output.rglob("failure.json"))


def test_results_come_in_the_order_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which runs end."""

    def backwards(function: Any, configs: Any, environments: Any) -> Iterator[Outcome]:
        for config in reversed(configs):
            folder = Path(config.output)
            folder.mkdir(parents=True)
            result = make_result("pos", config.method, config.seed, {"en": 0.5})
            result["name"] = config.output
            (folder / "config.json").write_text(json.dumps(config.resolved().to_json()))
            (folder / "result.json").write_text(json.dumps(result))
            yield Outcome(config, None, None)

    monkeypatch.setattr(runner, "run_jobs", backwards)
    plan = SweepPlan(["pos"], ["standard", "graddrop"], {"data": "D", "seeds": [0, 1]})
    results = runner.sweep(plan, tmp_path, workers=1)
    names = [config.output for config in plan.configs(tmp_path)]
    assert [result["name"] for result in results] == names and len(names) == 4
    # All are there now: the order is still that of the plan.
    assert [result["name"] for result in runner.sweep(plan, tmp_path)] == names


def test_a_dry_run_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows the runs in their order, all methods of one seed together."""
    plan = write_plan(tmp_path / "plan.toml", data, output=str(tmp_path / "output"))
    assert main(["sweep", str(plan), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pos-standard-s0: to be run",
        "pos-graddrop-p0.5-s0: to be run",
        "pos-standard-s1: to be run",
        "pos-graddrop-p0.5-s1: to be run",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]


def test_a_folder_of_another_run_stops_the_sweep_before_it_begins(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names folder and difference; no run is started."""
    plan = write_plan(tmp_path / "plan.toml", data)
    last = tmp_path / "output/runs/pos-graddrop-p0.5-s1"
    RunFolder(last).claim({"lr": 1})
    before = sorted(tmp_path.rglob("*"))
    assert main(["sweep", str(plan), "--output", str(tmp_path / "output")]) == 2
    shown = capsys.readouterr().err
    assert f"{last} holds a run of another configuration" in shown
    assert sorted(tmp_path.rglob("*")) == before
