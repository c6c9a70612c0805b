"""Laws of the report's pages: they say what was measured, stand alone, and repeat themselves."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra xglue")
pytest.importorskip("matplotlib", reason="needs the extra xglue")

from helpers.report_runs import HISTORY, make_result, put

from graddrop.cli import main
from graddrop.xglue.data.sources import open_source
from graddrop.xglue.mini import MiniSize, write_mini_xglue
from graddrop.xglue.report import write_report
from graddrop.xglue.report.document import Heading, Items, Paragraph, Picture, Table
from graddrop.xglue.report.markdown import render_markdown, render_table
from graddrop.xglue.report.published import PUBLISHED
from graddrop.xglue.report.webpage import render_webpage
from graddrop.xglue.scores.majority import majority_scores
from graddrop.xglue.tasks import TASKS

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """What a browser would see: every tag closed in turn, addresses, identities, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what is opened and where it points."""
        assert tag not in ("script", "iframe", "object", "link")
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text += data


def small(folder: Path, **settings: Any) -> Path:
    """Two tasks, three methods, two seeds; one run of the second task is missing."""
    for task in ("mlqa", "qadsm"):
        for index, method in enumerate(("standard", "graddrop", "lr-matched")):
            for seed in (0, 1):
                if (task, method, seed) == ("qadsm", "graddrop", 1):
                    continue
                base = 0.5 + 0.01 * seed + 0.02 * index
                scores = {
                    code: base + 0.003 * place**index
                    for place, code in enumerate(TASKS[task].languages)
                }
                put(folder, make_result(task, method, seed, scores, history=HISTORY, **settings))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs and the report on them."""
    folder = small(tmp_path_factory.mktemp("report"))
    write_mini_xglue(folder / "data", MiniSize(train=21, dev=3, test=11, text_lines=5))
    write_report(folder, data=str(folder / "data"))
    return folder


def table(folder: Path, caption: str) -> list[list[str]]:
    """The cells of a table of the Markdown file, its heads first."""
    text = (folder / "report.md").read_text()
    start = text.index(f"**{caption}")
    lines = text[start:].split("\n\n")[1].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if "--" not in line
    ]


def test_the_table_is_what_was_measured(written: Path) -> None:
    """Means over languages, then seeds; the interval of two seeds; dashes for what is missing."""
    rows = table(written, "Official score on test, mean over languages")
    assert rows[0] == ["task", "standard", "graddrop drop=0.5", "lr-matched drop=0.5"]
    # Seeds of 50.3 and 51.3: t of one degree of freedom is 12.706, the standard error 0.5.
    assert rows[1][:2] == ["mlqa", "50.80 ± 6.35 (2)"]
    assert rows[2][2] == "52.30 (1)"  # one seed: no interval
    assert rows[3][0] == "mean of 2 tasks"
    assert rows[3][2].endswith("(1)")  # the seed that has both tasks


def test_languages_stand_beside_their_baseline(written: Path) -> None:
    """The baseline of a metric is shown on test; rows go from much text to little."""
    rows = table(written, "qadsm, test: official score, accuracy")
    assert rows[0] == [
        "language",
        "text (GiB)",
        "majority label",
        "standard",
        "graddrop drop=0.5",
        "lr-matched drop=0.5",
    ]
    trivial = majority_scores(TASKS["qadsm"], open_source(str(written / "data")))["accuracy"]
    assert rows[1] == ["en", "301", f"{100 * trivial['en']:.2f}", "50.80", "52.00", "54.50"]
    assert [row[0] for row in rows[1:]] == ["en", "de", "fr", "mean", "zero-shot mean"]
    assert rows[5][2] == f"{100 * (trivial['de'] + trivial['fr']) / 2:.2f}"
    assert "majority label" not in table(written, "qadsm, dev: official score, accuracy")[0]


def test_too_few_seeds_are_said_to_be_few(written: Path) -> None:
    """Two pairs have an interval but no p; one pair has neither."""
    rows = table(written, "Score on test less that of standard")
    by_name = {tuple(row[:2]): row[3:] for row in rows[1:]}
    assert by_name["mlqa", "graddrop drop=0.5"][2:5] == ["2", "too few", "-"]
    assert by_name["qadsm", "graddrop drop=0.5"][1:] == ["-", "1", "too few", "-", "undecided"]


def test_the_page_stands_alone(written: Path) -> None:
    """Every tag is closed, and nothing is fetched from anywhere."""
    text = (written / "report.html").read_text()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    pictures = [a for a in page.addresses if a.startswith("data:image/svg+xml;base64,")]
    assert len(pictures) == 5  # differences, two tasks' curves, gains over two controls
    links = [address for address in page.addresses if address not in pictures]
    assert links and all(link[0] == "#" and link[1:] in page.ids for link in links)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    for source in pictures:
        content = base64.b64decode(source.partition(",")[2])
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        hrefs = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(href.startswith(("#", "data:")) for href in hrefs)


def test_the_files_of_the_figures_are_those_on_the_page(written: Path) -> None:
    """The Markdown file links each; a figure of an earlier report is gone."""
    (written / "report-figures/curves-old.svg").write_text("old")
    write_report(written, data=str(written / "data"))
    names = sorted(path.name for path in (written / "report-figures").iterdir())
    assert names == [
        f"{stem}.{suffix}"
        for stem in (
            "curves-mlqa",
            "curves-qadsm",
            "differences",
            "gain-over-lr-matched",
            "gain-over-standard",
        )
        for suffix in ("png", "svg")
    ]
    text = (written / "report.md").read_text()
    assert all(f"](report-figures/{name})" in text for name in names if name.endswith("svg"))


def test_scores_of_other_data_are_said_to_be_so(written: Path, tmp_path: Path) -> None:
    """These runs read the Hub; runs that read the folder itself need no such word."""
    note = "most frequent label are of the data at"
    assert f"{note} {written / 'data'}" in (written / "report.md").read_text()
    scores = dict.fromkeys(TASKS["qadsm"].languages, 0.5)
    put(tmp_path, make_result("qadsm", "standard", 0, scores, data=str(written / "data")))
    write_report(tmp_path, data=str(written / "data"))
    assert note not in (tmp_path / "report.md").read_text()


def test_equal_runs_give_equal_bytes(written: Path, tmp_path: Path) -> None:
    """A report does not tell when or where it was made."""
    again = small(tmp_path / "elsewhere")
    write_report(again, data=str(written / "data"))
    names = [str(path.relative_to(written)) for path in written.glob("report*/*")]
    names += ["report.md", "report.html"]
    assert len(names) == 5 * 2 + 2  # pictures in two formats, the report in two
    for name in names:
        assert (again / name).read_bytes() == (written / name).read_bytes()


def test_a_report_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    """The earlier one stays as it was."""
    put(tmp_path, make_result("qam", "standard", 0, {"en": 0.5}))
    (tmp_path / "report.md").write_text("earlier")
    put(tmp_path, make_result("qam", "standard", 1, {"en": 0.5}, model="other"))
    with pytest.raises(ValueError, match="share their model"):
        write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "runs"]


def test_text_of_runs_is_no_markup(tmp_path: Path) -> None:
    """A model's name that looks like a tag or a table is shown as it is spelt."""
    evil = '<script>alert("x")</script>|*y*'
    data = evil + "\x1b[2J\u202e"  # what a terminal or a browser would obey is shown, too
    folder = put(tmp_path, make_result("qam", "standard", 0, {"en": 0.5}, model=evil, data=data))
    write_report(folder)
    assert Page((folder / "report.html").read_text()).text.count(evil) >= 2
    assert evil + r"\x1b[2J\u202e" in Page((folder / "report.html").read_text()).text
    for name in ("report.html", "report.md"):
        assert not re.search("[\x1b\u202e]", (folder / name).read_text())
    assert r'\<script\>alert("x")\</script\>\|\*y\*' in (folder / "report.md").read_text()


def test_what_weakens_the_numbers_is_said(written: Path, tmp_path: Path) -> None:
    """Scores of some examples, of a model without pretraining, of few languages; else nothing."""
    settings = {"model": "tiny", "limit_eval": 200}
    put(tmp_path, make_result("qam", "standard", 0, {"en": 0.5, "de": 0.4}, **settings))
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "only the first 200 examples of each file" in text
    assert "The model was not pretrained" in text
    assert "qam: mean over 2 of the 3 official languages; without fr." in text
    whole = (written / "report.md").read_text()
    assert not any(x in whole for x in ("only the first", "not pretrained", "of the 3 official"))


def test_rendering_escapes_every_kind_of_text() -> None:
    """Heads, captions, cells and paragraphs alike; the negative control has no markup."""
    evil = "<b>|_&\"'"
    blocks = [
        Heading(evil, 1),
        Paragraph(evil),
        Table("t", evil, [evil, "x"], [[evil, evil]], apart=1),
    ]
    html = render_webpage(blocks)
    assert "<b>" not in html
    assert Page(html).text.count(evil) == 7
    markdown = render_markdown(blocks, "figures")
    assert not re.search(r"(?<!\\)[<_]", markdown)
    assert markdown.count(r"\<b\>\|\_") == 6


def test_what_was_found_comes_before_the_contents() -> None:
    """On the page, too; a document of sections alone has its contents first."""
    drawn = Picture("seen", "Drawn", {"svg": b"<svg/>"})
    blocks = [Heading("Title", 1), Paragraph("Verdict"), drawn, Items(["More"]), Heading("One")]
    html = render_webpage(blocks)
    order = [html.index(text) for text in ("<h1>", "Verdict", "<figure>", "<nav", "More", "<h2")]
    assert order == sorted(order) and html.count("<nav") == 1
    short = render_webpage([blocks[0], blocks[-1]])
    assert short.index("<nav") < short.index("<h2") and short.count("<nav") == 1


def test_a_table_reads_as_plain_text() -> None:
    """Names to the left, numbers to the right, wide characters counted as two columns."""
    shown = render_table(Table("t", "", ["a", "b", "c"], [["中文", "x", "1.0"]], names=2))
    assert shown.splitlines() == [
        "| a    | b   |   c |",
        "| ---- | --- | --: |",
        "| 中文 | x   | 1.0 |",
    ]


def test_published_scores_stand_apart(written: Path, tmp_path: Path) -> None:
    """They have columns of their own, are named as published, and never beside a toy."""
    assert "Unicoder" not in (written / "report.md").read_text()
    folder = small(tmp_path)
    for path in folder.rglob("result.json"):
        path.write_text(path.read_text().replace('"parameters": 1000', '"parameters": 270000000'))
    write_report(folder)
    rows = table(folder, "Official score on test, mean over languages")
    assert rows[0][-2:] == ["published: Unicoder (270 M)", "published: FILTER (550 M)"]
    assert [row[-2:] for row in rows[1:]] == [["66.0", "76.2"], ["68.4", "71.4"], ["-", "-"]]
    page = (folder / "report.html").read_text()
    assert page.count('class="apart first-apart"') == 4 and page.count('class="apart"') == 4
    assert "not known to us" in (folder / "report.md").read_text()


def test_published_means_are_those_of_their_rows() -> None:
    """The mean over nine tasks, as published, agrees with the scores to their last digit."""
    for entry in PUBLISHED:
        assert set(entry.scores) == set(TASKS)
        assert sum(entry.scores.values()) / 9 == pytest.approx(entry.mean, abs=0.1)


def test_names_are_explained(written: Path) -> None:
    """Every task and method of the report in a line; p is that of a test, and nothing else."""
    text = (written / "report.md").read_text()
    for line in ("- mlqa: find the answer", "- qadsm: tell whether", "- lr-matched: control of"):
        assert text.count(line) == 1
    assert not re.search(r"\bp=", text) and "graddrop drop=0.5" in text


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends by naming its files; an empty folder is refused in one line."""
    folder = put(tmp_path / "runs", make_result("qam", "standard", 0, {"en": 0.5}))
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| task ")
    assert shown[-2:] == [str(folder / "report.md"), str(folder / "report.html")]
    for method in ("standard", "graddrop"):
        for seed in (1, 2, 3):
            odd = make_result("qam", method, seed, {"en": 0.5 + seed / 100})
            odd["config"]["precision"] = "\x1b[2J$\\frac$"  # figures take it, too
            put(folder, odd)
    assert main(["report", str(folder)]) == 0
    assert "\x1b" not in (screen := capsys.readouterr().out)
    table, verdict = screen.split("\n\n")[:2]
    assert "x1b" in table and "x1b" in verdict
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "expected finished runs" in capsys.readouterr().err
