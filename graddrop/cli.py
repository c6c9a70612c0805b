"""The command line: one table of sub-commands, each imported when it is called for."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Name of the file in `graddrop.xglue.commands`, one line of help.
COMMANDS = (
    ("demo", "invent a benchmark, pretrain, compare methods on it"),
    ("pretrain", "pretrain a small XLM-R on raw text files"),
    ("finetune", "fine-tune on one XGLUE task, score every language"),
    ("report", "compare the runs below a folder: tables, tests, figures"),
    ("sweep", "run tasks x methods x drop probabilities x seeds"),
    ("score", "score prediction files as the benchmark does"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: Arguments after the program's name; None means those of the process.

    Returns:
        The exit status: 0, or 2 for an error of the user's, which is said in one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser(arguments).parse_args(arguments)
        return int(parsed.run(parsed))
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == __package__:
            raise
        message = f'{error.name} is not installed; pip install "graddrop[xglue]"'
    except (ValueError, OSError) as error:
        message = str(error)
    print(f"graddrop {arguments[0]}: error: {message}", file=sys.stderr)
    return 2


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, complete for the command that the arguments call for."""
    parser = argparse.ArgumentParser(
        prog="graddrop", description="Stochastic gradient masking for fine-tuning."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS:
        sentence = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=sentence)
        # Only the module that is called for is imported: `graddrop --help` stays quick.
        if arguments[:1] == [name]:
            implementation = import_module(f"graddrop.xglue.commands.{name}")
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
