"""Laws of the script that asks when masking helps."""

import random
import sys

import pytest
from helpers.root import ROOT

pytest.importorskip("scipy")
pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "docs" / "evidence"))

import map_of_when as when


def row(seed, score, *, method="graddrop", drop_prob=0.5, lr=4e-4, limit=64, steps=120, **other):
    """A line of raw scores, as far as the script reads it."""
    return {
        "task": "pos",
        "method": method,
        "drop_prob": drop_prob,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "metric": "chunk_precision",
        "train_loss": 0.25,
        "settings": {"limit_train": limit, "batch_size": 16},
        "scores": {"test": {code: {"chunk_precision": score} for code in ("de", "ur")}},
        **other,
    }


def standard(seed, score, **other):
    """That of the run without masks."""
    return row(seed, score, method="standard", drop_prob=0.5, lr=2.83e-4, **other)


def test_a_pair_is_of_one_seed_and_one_cell():
    """Gains in points, epochs of whole passes; a run without its other half is left out."""
    rows = [
        standard(1, 0.5),
        row(1, 0.53),
        row(1, 0.48, drop_prob=0.75, lr=5.66e-4),
        row(2, 0.9),  # no standard run of its seed
        standard(1, 0.6, limit=960),
        row(1, 0.61, limit=960),
        row(1, 0.99, limit=960, lr=8e-4),  # another rate is another question
        row(1, 0.99, limit=240, scores={"test": {}}),  # a tuning run
    ]
    found = when.pairs(rows, ["de", "ur"])
    assert [(q.cell, q.drop_prob, q.seed, q.epochs) for q in found] == [
        ((960, 120), 0.5, 1, 2),
        ((64, 120), 0.5, 1, 30),
        ((64, 120), 0.75, 1, 30),
    ]
    assert [q.gain for q in found] == pytest.approx([1, 3, -2])
    assert "| 64 | 120 | 30 | 0.5 | 1 | 0.25 | +3.00 | - |" in when.table(found)


def test_two_runs_of_one_seed_are_refused():
    """Nothing says which of them is meant."""
    with pytest.raises(ValueError, match="expected one run"):
        when.pairs([standard(1, 0.5), standard(1, 0.51)], ["de"])


def test_a_planted_slope_is_found_and_none_where_there_is_none():
    """Its value by least squares, its p small; and p uniform enough without a trend."""
    draw = random.Random(7)
    x = [1.0] * 5 + [3.0] * 5 + [5.0] * 5
    value, p = when.slope(x, [0.5 * step + draw.gauss(0, 0.1) for step in x])
    assert value == pytest.approx(0.5, abs=0.1)
    assert p < 0.001
    assert when.slope([1.0, 2.0, 3.0, 3.0], [2.0, 4.0, 6.0, 6.0])[0] == pytest.approx(2)
    chances = [when.slope(x, [draw.gauss(0, 1) for _ in x])[1] for _ in range(100)]
    assert 0 < sum(chance < 0.1 for chance in chances) < 25


def test_the_page_has_the_map_of_the_rows(capsys):
    """Table and slopes between their marks in `docs/evidence.md`."""
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    when.main()
    assert capsys.readouterr().out.strip() in page
