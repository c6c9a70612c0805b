"""The command `graddrop report`."""

import argparse

from graddrop.xglue.report.document import Paragraph, find_table
from graddrop.xglue.report.markdown import render_table
from graddrop.xglue.report.sections.scores import XGLUE_TABLE
from graddrop.xglue.report.write import Files, write_report
from graddrop.xglue.textfile import printable


def run(args: argparse.Namespace) -> int:
    """Write the report and print its first table and its verdict."""
    blocks = write_report(args.place, args.text_sizes, args.data, args.plan, args.output)
    print(printable(render_table(find_table(blocks, XGLUE_TABLE))))
    verdict = next(block for block in blocks if isinstance(block, Paragraph))
    print(printable(f"\n{verdict.text}\n"))
    files = Files.of(args.place, args.output)
    print("\n".join(str(file) for file in (files.markdown, files.webpage) if file))
    return 0
