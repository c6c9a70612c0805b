"""Laws of the evidence: pages say what the committed scores say, and no more."""

import json
import re
import sys

import pytest
from helpers.root import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from graddrop.methods import PRESETS
from graddrop.xglue.report import write_report
from graddrop.xglue.report.document import Paragraph

EVIDENCE = ROOT / "docs" / "evidence"


SCORES = {  # scores, plan, sizes of text
    "results.md": ("runs.jsonl", "report.toml", "cc100.json"),
    "results-time.md": ("runs-time.jsonl", "report-time.toml", None),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Both reports made anew: blocks and Markdown by page."""
    made = {}
    for page, (scores, plan, sizes) in SCORES.items():
        file = tmp_path_factory.mktemp("evidence") / page
        blocks = write_report(
            EVIDENCE / scores,
            sizes_file=None if sizes is None else EVIDENCE / sizes,
            plan_file=EVIDENCE / plan,
            output=file,
        )
        made[page] = blocks, file.read_text(encoding="utf-8")
    return made


@pytest.mark.parametrize("page", SCORES)
def test_the_tables_are_those_of_the_scores(reports, page):
    """The committed page is what the command makes of the committed scores."""
    assert (EVIDENCE / page).read_text(encoding="utf-8") == reports[page][1]


def test_pages_of_methods_say_what_was_measured():
    """Those of the committed scores on test, and no other."""
    files = [(EVIDENCE / scores).read_text("utf-8") for scores, *_ in SCORES.values()]
    lines = [line for text in files for line in text.splitlines()]
    trained = {row["method"] for row in map(json.loads, lines) if row["scores"]["test"]}
    assert {name for name in PRESETS if name in trained} == {
        name for name, preset in PRESETS.items() if preset.measured
    }


@pytest.mark.parametrize("page", ["docs/evidence.md", "README.md"])
def test_the_verdict_is_that_of_the_scores(reports, page):
    """Page and README quote the sentence that the report opens with."""
    verdict = next(block.text for block in reports["results.md"][0] if isinstance(block, Paragraph))
    quoted = re.search(
        "<!-- verdict -->(.*?)<!-- /verdict -->", (ROOT / page).read_text("utf-8"), re.DOTALL
    )
    assert quoted is not None
    assert " ".join(quoted[1].split()) == " ".join(verdict.split())


def test_the_page_shows_the_alignment_that_was_found():
    """The table is what the script makes of its lines."""
    pytest.importorskip("transformers")
    sys.path.insert(0, str(EVIDENCE))
    from alignment import table

    lines = [json.loads(line) for line in (EVIDENCE / "alignment.jsonl").read_text().splitlines()]
    assert table(lines) in (ROOT / "docs/evidence.md").read_text("utf-8")
