"""The study's own files: each is what a command reads."""

import json
from pathlib import Path

import pytest
from helpers.root import ROOT

pytest.importorskip("transformers", reason="needs the extra xglue")

from graddrop.xglue.report.analysis_plan import read_analysis_plan
from graddrop.xglue.settings import read_settings
from graddrop.xglue.sweep.plan import read_plan

FILES = sorted((ROOT / "docs/evidence").glob("*.toml")) + [ROOT / "docs/sweep.toml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_sweep_or_decides_something(path: Path) -> None:
    """None has a setting that no command knows; a sweep that tunes never reads test."""
    if "primary" in read_settings(path) or "title" in read_settings(path):
        decides = read_analysis_plan(path)
        assert decides.primary or decides.cost
        return
    plan, output = read_plan(path)
    assert output is not None
    for config in plan.configs(Path(output)):
        tunes = path.stem.startswith("tune-")
        assert ("test" in config.evaluate) != tunes
        assert not tunes or config.seed >= 100


def test_costs_are_those_of_the_record() -> None:
    """Steps of the encoder; what masks saved by dropping some share is that of the share meant."""
    record = json.loads((ROOT / "bench/results/whole-step-cpu.json").read_text(encoding="utf-8"))
    found = {cost["way"]: cost for cost in record["costs"] if cost["model"] == "encoder"}
    plan = read_analysis_plan(ROOT / "docs/evidence/report-time.toml")

    def at(way: str, share: float) -> float:
        return 1 - (1 - found[way]["ratio"]) * share / found[way]["dropped"]

    expected = {way: found[way]["ratio"] for way in ("lisa", "upper-half", "head-only", "lora")}
    expected["half-fine-tuning"] = at("half-fine-tuning", 0.5)
    for drop in (0.25, 0.5, 0.75):
        expected[f"layer-graddrop drop={drop}"] = at(f"layer-graddrop {drop}", drop)
    between = [expected[f"layer-graddrop drop={drop}"] for drop in (0.25, 0.5)]
    for ends in ("0,0.75", "0.75,0"):
        expected[f"layer-graddrop drop={ends} drop_schedule=linear"] = sum(between) / 2
    head, half = expected["head-only"], expected["upper-half"]
    stages = [head + n_layers * (half - head) / 6 for n_layers in range(13)] + [1.0]
    expected["gradual-unfreezing"] = (sum(stages) / len(stages) + 1) / 2
    assert plan.cost == pytest.approx(expected, abs=6e-4)
