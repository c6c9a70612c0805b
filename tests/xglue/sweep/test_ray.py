"""Laws of a sweep on Ray: the same runs, the same results."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import jobs
from helpers.root import ROOT

pytest.importorskip("ray", reason="needs the extra cluster")
pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

import ray
from helpers.xglue_files import write_archive

from graddrop.cli import main
from graddrop.xglue.sweep.cluster import connect, run_jobs_on_ray

TESTS = ROOT / "tests"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this machine's own, whose processes find what this one finds."""
    path = f"{TESTS.parent}:{TESTS}"
    ray.init(
        num_cpus=2,
        log_to_driver=False,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def test_jobs_on_ray_end_as_jobs_of_workers_do(cluster: None) -> None:
    """An error is its traceback; a death is said; neither is tried again, nor stops another."""
    assert connect() == 2
    asked = ["a", "refuse", "die", "b"]
    found = {o.job: o for o in run_jobs_on_ray(jobs.work, asked) if o is not None}
    assert sorted(found) == sorted(asked)
    assert found["a"].value[2] == "a" and found["b"].error is None
    assert found["refuse"].error.startswith("Traceback (most recent call last)")
    assert found["refuse"].error.endswith("ValueError: refused\n")
    assert "died" in found["die"].error


def test_a_caller_that_stops_cancels_what_runs(cluster: None, tmp_path: Path) -> None:
    """Its place is free again long before it would have ended."""
    running = run_jobs_on_ray(jobs.work, [f"wait {tmp_path / str(n)}" for n in (1, 2)])
    while len(list(tmp_path.iterdir())) < 2:
        assert next(running) is None
    running.close()
    began = time.monotonic()
    assert [o.error for o in run_jobs_on_ray(jobs.work, ["a"]) if o is not None] == [None]
    assert time.monotonic() - began < 30


def test_a_sweep_on_ray_ends_as_one_here(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file, the same scores; a failed run is recorded alike."""
    data = write_archive(tmp_path / "data")
    (data / "NER/en.train").unlink()
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'data = "{data}"\ntasks = ["ner", "pos"]\narms = ["graddrop"]\nmax-steps = 2\n'
        "batch-size = 8\nmax-length = 32\n"
    )
    scores = []
    for engine in (["ray"], ["local", "--workers", "1"]):
        output = tmp_path / engine[0]
        assert main(["sweep", str(plan), "--output", str(output), "--engine", *engine]) == 1
        result = json.loads((output / "runs/pos-graddrop-p0.5-s0/result.json").read_text())
        scores.append(result["scores"])
        record = json.loads((output / "runs/ner-graddrop-p0.5-s0/failure.json").read_text())
        assert record["error"].startswith("graddrop.xglue.data.layouts.DataError: ")
    assert scores[0] == scores[1]
    assert main(["sweep", str(plan), "--engine", "ray", "--workers", "1", "--output", "x"]) == 2
    assert "leave them out" in capsys.readouterr().err


LOST_NODE = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from helpers import jobs
from graddrop.xglue.sweep.cluster import run_jobs_on_ray
here = Path(sys.argv[1])
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
)
first = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
running = run_jobs_on_ray(jobs.work, [f"linger {here}"])
while not here.exists():
    assert next(running) is None
cluster.add_node(num_cpus=1)
cluster.remove_node(first, allow_graceful=False)
[outcome] = [outcome for outcome in running if outcome is not None]
print(outcome.error, outcome.value[2])
ray.shutdown()
cluster.shutdown()
"""


def test_a_job_whose_node_died_ends_on_another(tmp_path: Path) -> None:
    """The machine under it is lost while it works; it is called again, and comes to its end."""
    here = tmp_path / "here"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", LOST_NODE, str(here)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"None linger {here}" in done.stdout
