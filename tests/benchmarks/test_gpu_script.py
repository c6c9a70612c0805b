"""Laws of the script for GPU machines: what holds of its time and its exit status."""

import os
import subprocess

import pytest
from helpers.root import ROOT

# In place of timeout: writes down the limit and the command, and fails where it is told to.
TIMEOUT = """#!/bin/sh
shift 2
echo "$@" >>"$CALLS"
case "$*" in *"$FAILING"*) exit 7 ;; esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script without its commands: exit status, limit and command of each, summary."""
    fake, calls, results = tmp_path / "timeout", tmp_path / "calls", tmp_path / "results"
    fake.write_text(TIMEOUT)
    fake.chmod(0o755)

    def run_script(device="cuda", only=".", failing="nothing", seconds=0):
        calls.write_text("")
        env = os.environ | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "FAILING": failing,
            "SECONDS": str(seconds),  # bash begins to count there
        }
        command = ["bash", str(ROOT / "bench/gpu.sh"), str(results), device, only]
        status = subprocess.run(command, env=env, capture_output=True, timeout=60).returncode
        told = [line.split(" ", 1) for line in calls.read_text().splitlines() if line[0].isdigit()]
        summary = (results / "summary.txt").read_text().splitlines()[1:]
        return status, [(int(limit), rest) for limit, rest in told], summary

    return run_script


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_step_is_run(run, device):
    """In time, each has its limit and its line."""
    status, told, summary = run(device)
    assert status == 0
    assert len(told) == len(summary) == (10 if device == "cuda" else 8)
    assert all(0 < limit < 480 for limit, _ in told)


@pytest.mark.parametrize("seconds", [300, 470])
def test_a_step_has_no_more_than_what_is_left(run, seconds):
    """Eight minutes of steps; the ninth is for what has to be killed."""
    status, told, _ = run(seconds=seconds)
    left = 480 - seconds
    assert status == 0 and len(told) == 10
    assert all(0 < limit <= left + 30 for limit, _ in told)  # tables have 15 of their own, twice
    assert all(limit <= left for limit, _ in told[:3])


def test_what_was_cut_off_can_be_run_again(run):
    """Alone: steps by their names, a benchmark with its table."""
    status, told, summary = run(only="racecheck|compiled")
    assert status == 0 and len(told) == 3
    assert [line.split()[0] for line in summary] == [
        "racecheck",
        "bench-compiled",
        "bench-compiled-table",
    ]


def test_a_step_without_time_is_written_down(run):
    """It is a failure: the results are not whole."""
    status, told, summary = run(seconds=600)
    assert status == 1 and told == []
    assert len(summary) == 10 and all(line.split()[1] == "skipped" for line in summary)


@pytest.mark.parametrize("failing", ["bench.render", "racecheck", "-m gpu tests"])
def test_a_failed_step_fails_the_whole(run, failing):
    """Tables too; the steps behind it run all the same."""
    status, told, summary = run(failing=failing)
    assert status == 1 and len(told) == 10
    failed = [line for line in summary if line.split()[1] == "7"]
    assert 0 < len(failed) < 10 and len(failed) == sum(failing in rest for _, rest in told)
