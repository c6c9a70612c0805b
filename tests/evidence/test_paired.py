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


def gain_of(task, ours, theirs):
    """What gradual unfreezing gains over all seeds that both arms have, and how many they are."""
    one = paired.scores("runs.jsonl", "gradual-unfreezing", ours, task)
    other = paired.scores("runs.jsonl", "standard", theirs, task)
    gain, _, pairs, _ = paired.table(one, other).splitlines()[2].strip("| ").split(" | ")
    return gain, pairs


def test_the_readme_has_what_gradual_unfreezing_gained():
    """In both tasks, and at equal cost next to the other ways that it names."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    (pos, pairs), (ner, ner_pairs) = gain_of("pos", 5.66e-4, 2.83e-4), gain_of("ner", 2e-4, 1e-4)
    assert pairs == ner_pairs == "10"
    assert f"{pos} points over ten seeds in tagging" in readme
    assert f"and {ner} in named entities" in readme
    tables = (ROOT / "docs/evidence/results-time.md").read_text(encoding="utf-8")
    at_cost = tables[tables.index("## Score at equal cost") :]
    for way in ("gradual-unfreezing", r"layer-graddrop drop=0.5", "lisa drop=0.833333"):
        rows = re.findall(rf"^\| {re.escape(way)} +\|(.*)\|$", at_cost, re.MULTILINE)[:2]
        in_ner, in_pos = (row.split("|")[4].strip() for row in rows)
        assert f"({in_pos}, {in_ner})" in readme
