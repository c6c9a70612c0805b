"""A report on the runs below a folder: tables, tests, figures, as Markdown and as a web page.

    from graddrop.xglue.report import write_report
    write_report(Path("runs"))

What is compared is in `collect`, how in `comparison` and `gains` with the tests of `statistics`;
each section of the report is a file in `sections` that yields blocks of a `document`, tables and
`pictures`; `write` puts them in order, `markdown` and `webpage` write them down.
"""

from graddrop.xglue.report.write import write_report

__all__ = ["write_report"]
