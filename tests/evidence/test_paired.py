"""Laws of the script that compares two arms over chosen seeds, and of the page's tables."""

import json
import re
import sys

import pytest
from helpers.root import ROOT

pytest.importorskip("scipy")
pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "docs" / "evidence"))

import paired

PAGE = ROOT / "docs/evidence.md"


def test_pairs_are_those_of_the_chosen_seeds():
    """Of the seeds that both have; fewer than three pairs have no p."""
    ours = {1: 75.0, 2: 76.0, 3: 78.0, 9: 10.0}
    theirs = {1: 74.0, 2: 74.0, 3: 75.0, 8: 99.0}
    assert paired.table(ours, theirs).splitlines()[2] == "| +2.00 | -0.48 to +4.48 | 3 | 0.074 |"
    assert paired.table(ours, theirs, [1, 2]).splitlines()[2].endswith("| 2 | - |")


@pytest.mark.parametrize(("task", "other"), [("pos", "ner"), ("ner", "pos")])
def test_a_score_is_of_one_arm_and_one_regime(tmp_path, monkeypatch, task, other):
    """Other rates, sizes, tasks and runs without test are other questions."""
    languages = paired.read_analysis_plan(paired.HERE / "report.toml").languages[task]
    row = {"task": task, "method": "standard", "lr": 1e-4, "seed": 3, "metric": "m"}
    row["settings"] = {**paired.WHERE[task], "data": "xglue"}
    row["scores"] = {"test": {code: {"m": 0.5} for code in ("en", *languages)}}
    others = [
        {**row, "lr": 2e-4, "seed": 4},
        {**row, "task": other, "seed": 5},
        {**row, "settings": {**row["settings"], "max_steps": 90}, "seed": 6},
        {**row, "scores": {"test": {}}, "seed": 7},
    ]
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, [row, *others])))
    plan = paired.read_analysis_plan(paired.HERE / "report.toml")
    monkeypatch.setattr(paired, "read_analysis_plan", lambda _: plan)
    monkeypatch.setattr(paired, "HERE", tmp_path)
    assert paired.scores("rows", "standard", 1e-4, task) == {3: pytest.approx(50)}


def test_the_page_shows_what_its_commands_print(capsys):
    """Each command line of the script on the page stands before the table that it prints."""
    text = PAGE.read_text(encoding="utf-8").replace(" \\\n    ", " ")
    found = re.findall(r"```\npython docs/evidence/paired\.py (.*)\n```\n\n((?:\|.*\n)+)", text)
    assert found
    for command, shown in found:
        paired.main(command.split())
        assert capsys.readouterr().out == shown


def test_the_readme_has_what_gradual_unfreezing_gained():
    """Over all seeds that both arms have."""
    ours = paired.scores("runs.jsonl", "gradual-unfreezing", 5.66e-4)
    theirs = paired.scores("runs.jsonl", "standard", 2.83e-4)
    gain, _, pairs, _ = paired.table(ours, theirs).splitlines()[2].strip("| ").split(" | ")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert pairs == "10" and f"{gain} points over ten seeds" in readme
