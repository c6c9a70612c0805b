"""Laws of the benchmarks' records: where they come from, and the tables that are made of them."""

import json
import subprocess

import pytest
from helpers.root import ROOT

from bench import conftest, render
from graddrop.xglue.training import provenance


def test_a_record_names_its_commit(tmp_path, monkeypatch):
    """Of git, dirty where what it measured is edited; of the environment, which comes first."""
    monkeypatch.delenv("GRADDROP_COMMIT", raising=False)
    for name in ("graddrop/__init__.py", "kernels/step.py", "bench/peers.py", "docs/index.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setattr(provenance.graddrop, "__file__", str(tmp_path / "graddrop/__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert named() == {"id": "unversioned", "dirty": False}

    def git(*arguments):
        ours = ("-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *ours, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    found = git("rev-parse", "HEAD")
    assert named() == {"id": found, "dirty": False}
    for name, counts in (("docs/index", 0), ("bench/peers", 1), ("kernels/step", 1)):
        edited = next(tmp_path.glob(f"{name}.*"))
        edited.write_text("edited")
        assert named() == {"id": found, "dirty": bool(counts)}
        assert provenance.commit() == found + "-dirty" * (name == "kernels/step")
        git("checkout", ".")
    monkeypatch.setenv("GRADDROP_COMMIT", "89ab")
    assert named() == {"id": "89ab", "dirty": False}


def named():
    """The commit as pytest-benchmark writes it into a record."""
    info = {"id": "its own", "dirty": True}
    conftest.pytest_benchmark_update_commit_info(info)
    return info


def make_record():
    """A record with a row of two peers that were measured, and one that could not be."""
    info = {
        "workload": "one tensor",
        "peer_key": "graddrop",
        "package": None,
        "state_bytes": 400_000_000,
        "temporary_bytes": None,
        "host_seconds": 0.00021,
        "n_tensors": 1,
        "n_elements": 50_000_000,
        "peer": "GradDrop",
        "bytes_per_element": 28,
        "ratio_to_baseline": {"median": 0.954, "quartiles": [0.94, 0.97]},
        "pass_bytes_per_second": 35e9,
        "device_name": None,
        "n_threads": 2,
        "torch": "2.13.0",
        "load_average": 0.25,
    }
    stats = {"median": 0.050, "q1": 0.049, "q3": 0.0512}
    fused = {**info, "peer_key": "fused", "peer": "fused", "package": "other 1.2"}
    return {
        "benchmarks": [
            {"extra_info": fused, "stats": {**stats, "median": 0.00123}},
            {"extra_info": info, "stats": stats},
        ],
        "not_measured": [
            {"workload": "one tensor", "peer": "absent", "reason": "has no wheel"},
            {"workload": "two tensors", "peer": "fused", "reason": "not begun"},
        ],
        "machine_info": {
            "cpu": {"brand_raw": "A processor"},
            "system": "Linux",
            "machine": "x86_64",
            "python_version": "3.11.7",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05.678+00:00",
    }


def test_a_record_becomes_a_table():
    """Medians, ratios within rounds, bytes over time, memory; and what is missing, with why.

    A step at .80 of the pass's speed and .954 of torch's time would take .76 of it at that speed.
    """
    table = render.render(make_record())
    begin = "| GradDrop | 50.0 | 49.0 to 51.2 | 0.95 | 0.94 to 0.97 |"
    assert f"{begin} 28.0 | 80% | 0.76 | 8.0 |  | 210 |" in table
    unmodelled = make_record()
    unmodelled["benchmarks"][1]["extra_info"]["bytes_per_element"] = None
    assert f"{begin}  |  |  | 8.0 |  | 210 |" in render.render(unmodelled)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| absent | not measured: has no wheel |" in table
    assert "**two tensors**: not measured" in table
    assert "A processor, 2 threads" in table
    assert "other 1.2, commit 0123456789 with changes" in table


def test_the_summary_has_a_column_per_workload():
    """Medians of ratios within rounds, of milliseconds in brackets; ours in bold."""
    table = render.summary(make_record())
    assert table.splitlines()[0] == "| optimizer step, fp32, over torch's (ms) | one tensor |"
    assert "| torch AdamW fused, no mask | 0.95 (1.23) |" in table
    assert "| **GradDrop, one pass** | **0.95 (50.0)** |" in table


def test_a_record_without_a_row_has_no_table(tmp_path):
    """It is refused by name, before anything is printed or drawn."""
    path = tmp_path / "none.json"
    path.write_text(json.dumps(make_record() | {"benchmarks": []}))
    with pytest.raises(ValueError, match=r"none\.json: expected a row that was measured, got none"):
        render.main(str(path))
    assert [*tmp_path.iterdir()] == [path]


def test_a_record_becomes_a_plot(tmp_path):
    """A panel with a mark for each row: other rows make another picture."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    record = make_record()
    render.draw(record, tmp_path / "two.png")
    record["benchmarks"].pop()
    render.draw(record, tmp_path / "one.png")
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_readme_shows_the_record():
    """The README's table is the committed record's, to the last digit."""
    record = json.loads((ROOT / "bench/results/step-cpu.json").read_text())
    found = render.SUMMARY.search((ROOT / "README.md").read_text())
    assert found is not None and found.group() == render.summary(record)
