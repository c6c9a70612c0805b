"""The command `graddrop report`."""

import argparse
from pathlib import Path

from graddrop.xglue.report.document import Paragraph, find_table
from graddrop.xglue.report.markdown import render_table
from graddrop.xglue.report.scores import XGLUE_TABLE
from graddrop.xglue.report.write import Files, write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder with runs, at any depth, or a file of scores as graddrop sweep keeps it",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="Markdown file, in place of report.md and .html"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="TOML or YAML: the tests that are to decide"
    )
    parser.add_argument(
        "--text-sizes", type=Path, metavar="FILE", help="JSON, {language: size of its text}"
    )
    parser.add_argument(
        "--data", help="the runs' data: adds the score of the most frequent label, for comparison"
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print its first table and its verdict."""
    blocks = write_report(args.source, args.text_sizes, args.data, args.plan, args.output)
    print(render_table(find_table(blocks, XGLUE_TABLE)))
    verdict = next(block for block in blocks if isinstance(block, Paragraph))
    print(f"\n{verdict.text}\n")
    files = Files.of(args.source, args.output)
    print("\n".join(str(file) for file in (files.markdown, files.webpage) if file))
    return 0
