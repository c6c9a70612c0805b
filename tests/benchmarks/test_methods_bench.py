"""What a step of each method is said to cost."""

import json

import pytest
from helpers.root import ROOT

pytest.importorskip("transformers", reason="needs the extra xglue")

from bench import methods
from graddrop.methods import PRESETS

RECORD = ROOT / "bench/results/methods-cpu.json"


def test_every_method_is_stepped_beside_torch(tmp_path, capsys):
    """In the order of the presets; the record makes the table that was printed."""
    size = ["--layers", "4", "--width", "32", "--vocabulary", "300", "--rounds", "2"]
    methods.main([*size, "--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in record["rows"]] == list(PRESETS)
    assert all(len(times) == 2 for row in record["rows"] for times in row["seconds"].values())
    assert capsys.readouterr().out.strip() == methods.table(record["rows"])


def test_a_ratio_is_that_of_a_round():
    """Where all gets slower, both steps do."""
    seconds = {"fused": [1e-3, 2e-3, 4e-3], "method": [2e-3, 4e-3, 8e-3]}
    shown = methods.table([{"method": "lisa", "seconds": seconds}])
    assert shown.splitlines()[2] == "| [lisa](methods/lisa.md) | 4.0 | 2.00 | 2.00 to 2.00 |"


def test_the_page_has_the_record():
    """`docs/performance.md` shows what was measured of every method there is."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in rows] == list(PRESETS)
    assert methods.table(rows) in (ROOT / "docs/performance.md").read_text(encoding="utf-8")
