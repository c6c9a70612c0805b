"""Laws of the script that looks for translations in a model's states."""

import json
import sys

import pytest
import torch
from helpers.root import ROOT

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "docs" / "evidence"))

import alignment


def test_premises_are_those_of_english_once_and_in_its_order(tmp_path):
    """A premise stands in three rows; translations that happen to be equal stay."""
    (tmp_path / "en.test").write_text("a\tx\t1\na\ty\t2\nb\tx\t1\nc\tx\t1\n")
    (tmp_path / "de.test").write_text("A\tx\t1\nA\ty\t2\nB\tx\t1\nB\tx\t1\n")
    assert alignment.premises(tmp_path, 9) == {"en": ["a", "b", "c"], "de": ["A", "B", "B"]}
    assert alignment.premises(tmp_path, 2) == {"en": ["a", "b"], "de": ["A", "B"]}


def test_a_translation_is_found_where_it_is_nearest():
    """All in their places; none after a shift; the sentence looks, not its translation."""
    rows = torch.eye(4)
    assert alignment.retrieved(rows, rows) == 1
    assert alignment.retrieved(rows, rows.roll(1, 0)) == 0
    crowd = rows[:1].expand(4, 4)  # every translation says what the first sentence says
    assert alignment.retrieved(rows, crowd) == 0.25
    # The sentence looks, not its translation, whose nearest is the other one.
    theirs = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    assert alignment.retrieved(torch.eye(2), theirs) == 1
    assert alignment.retrieved(theirs, torch.eye(2)) == 0.5


def test_the_table_has_means_over_seeds_and_names_the_language_that_is_found_least():
    """With the range over seeds, where there are several."""
    lines = [
        {"model": "before", "retrieved": {"last": {"de": 1.0, "ur": 0.5}}},
        {"method": "standard", "retrieved": {"last": {"de": 0.5, "ur": 0.2}}},
        {"method": "standard", "retrieved": {"last": {"de": 0.6, "ur": 0.5}}},
    ]
    text = alignment.table(json.loads(json.dumps(lines))).splitlines()
    assert text[2:] == [
        "| before | 1 | last | 75.0 | ur 50.0 |",
        "| standard | 2 | last | 45.0 (35.0 to 55.0) | ur 35.0 |",
    ]
