"""A document as one HTML file that needs nothing else, on a phone, on paper, in the dark."""

import base64
from collections.abc import Sequence
from html import escape
from itertools import takewhile

from graddrop.xglue.report.document import Block, Heading, Items, Paragraph, Picture, Table

# The policy forbids everything from elsewhere, whatever the text of a run might say.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
"""

_FOOT = """</main>
</body>
</html>
"""

# Pictures keep their white ground in the dark: their colours were chosen on it.
_STYLE = """:root { --ink: #1a1a1a; --paper: #fff; --line: #ccc; --soft: #f4f4f2; --link: #0058a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #44484d; --soft: #202327; --link: #7fbcf0; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
main { max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 46rem; }
a { color: var(--link); }
h1 + p { font-size: 1.15rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0;
  max-width: min(46rem, calc(100vw - 2rem)); }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { background: var(--soft); vertical-align: bottom; white-space: normal;
  overflow-wrap: normal; min-width: 5rem; }
.name { text-align: left; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
thead th:first-child { background: var(--soft); }
.apart { font-style: italic; }
.first-apart { border-left: 3px double var(--line); }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; min-width: 40rem; max-width: 56rem; background: #fff;
  padding: .5rem; border-radius: .3rem; }
figcaption { font-size: .9rem; max-width: 46rem; }
@media print {
  :root { --ink: #000; --paper: #fff; --line: #999; --soft: #eee; --link: #000; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; }
  figure img { min-width: 0; max-width: 100%; padding: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .35rem; }
  tr, figure { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
}
"""


def render_webpage(blocks: Sequence[Block]) -> str:
    """Write a document: its title, what it found in words and a picture, then the contents.

    Args:
        blocks: The document.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    sections = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    places = {id(section): f"section-{number}" for number, section in enumerate(sections, 1)}
    opening = takewhile(lambda b: isinstance(b, Paragraph | Picture), blocks[1:])
    first = 1 + sum(1 for _ in opening)
    parts = []
    for number, block in enumerate(blocks):
        if sections and number == min(first, blocks.index(sections[0])):
            parts.append(_contents(sections))
        parts.append(_render(block, places.get(id(block))))
    return _HEAD.format(title=escape(title), style=_STYLE) + "".join(parts) + _FOOT


def _contents(sections: Sequence[Heading]) -> str:
    links = (
        f'<li><a href="#section-{number}">{escape(section.text)}</a></li>\n'
        for number, section in enumerate(sections, 1)
    )
    return f'<nav aria-label="Contents">\n<ul>\n{"".join(links)}</ul>\n</nav>\n'


def _render(block: Block, place: str | None) -> str:
    match block:
        case Heading(text, level):
            mark = f' id="{place}"' if place else ""
            return f"<h{level}{mark}>{escape(text)}</h{level}>\n"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>\n"
        case Items(texts):
            items = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
            return f"<ul>\n{items}</ul>\n"
        case Table():
            return _table(block)
        case Picture(_, caption, files):
            data = base64.b64encode(files["svg"]).decode("ascii")
            return (
                '<figure>\n<div class="wide">'
                f'<img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}"></div>\n'
                f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
            )


def _table(table: Table) -> str:
    own = len(table.columns) - table.apart

    def cell(tag: str, text: str, index: int, scope: str = "") -> str:
        kinds = {
            "name": index < table.names,
            "apart": index >= own,
            "first-apart": index == own,
        }
        chosen = " ".join(kind for kind, applies in kinds.items() if applies)
        style = f' class="{chosen}"' if chosen else ""
        return f"<{tag}{scope}{style}>{escape(text)}</{tag}>"

    head = "".join(
        cell("th", text, index, ' scope="col"') for index, text in enumerate(table.columns)
    )
    body = "".join(
        "<tr>"
        + cell("th", row[0], 0, ' scope="row"')
        + "".join(cell("td", text, index) for index, text in enumerate(row[1:], 1))
        + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="wide">\n<table>\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )
