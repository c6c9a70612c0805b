"""The command `graddrop report`."""

import argparse
from pathlib import Path

from graddrop.xglue.report.document import find_table
from graddrop.xglue.report.markdown import render_table
from graddrop.xglue.report.scores import XGLUE_TABLE
from graddrop.xglue.report.write import MARKDOWN_FILE, WEBPAGE_FILE, write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with runs, at any depth")
    parser.add_argument(
        "--text-sizes", type=Path, metavar="FILE", help="JSON, {language: size of its text}"
    )
    parser.add_argument(
        "--data", help="the runs' data: adds the score of the most frequent label, for comparison"
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print its first table."""
    blocks = write_report(args.folder, args.text_sizes, args.data)
    print(render_table(find_table(blocks, XGLUE_TABLE)))
    print(f"{args.folder / MARKDOWN_FILE}\n{args.folder / WEBPAGE_FILE}")
    return 0
