"""The study's own files: each is what a command reads."""

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
        assert read_analysis_plan(path).primary
        return
    plan, output = read_plan(path)
    assert output is not None
    for config in plan.configs(Path(output)):
        tunes = path.stem.startswith("tune-")
        assert ("test" in config.evaluate) != tunes
        assert not tunes or config.seed >= 100
