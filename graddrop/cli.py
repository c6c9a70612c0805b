"""The command line: one table of sub-commands, each imported when it is called for."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple, NoReturn, TextIO

from graddrop import __version__
from graddrop.xglue.names import meant
from graddrop.xglue.textfile import printable


class Command(NamedTuple):
    """A row of the table.

    Args:
        name: Of the command, of its file in `graddrop.xglue.commands`, and of the function that
            declares its arguments.
        summary: One line of help.
        again: How it goes on after it was interrupted.
    """

    name: str
    summary: str
    again: str = "nothing is left behind"


COMMANDS = (
    Command(
        "demo", "invent a benchmark, pretrain, compare methods on it", "the same command goes on"
    ),
    Command("pretrain", "pretrain a small XLM-R on raw text files"),
    Command(
        "finetune",
        "fine-tune on one XGLUE task, score every language",
        "the same command with --resume goes on",
    ),
    Command("report", "compare the runs below a folder: tables, tests, figures"),
    Command(
        "sweep", "run tasks x methods x drop probabilities x seeds", "the same command goes on"
    ),
    Command("score", "score prediction files as the benchmark does"),
)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of the signal."""

NOBODY_READS = 141
"""Exit status where whoever read the output has gone away, as in `graddrop finetune | true`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: Arguments after the program's name; None means those of the process.

    Returns:
        The exit status: 0; 2 for an error of the user's, which is said in one line; `INTERRUPTED`
        or `NOBODY_READS`, with a line that says how to go on.
    """
    arguments = [_dashed(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    command, status, message = Command("", ""), 2, ""
    leaving: SystemExit | None = None
    try:
        parsed = _parser(arguments).parse_args(arguments or ["--help"])
        command = next(row for row in COMMANDS if row.name == parsed.command)
        implementation = import_module(f"graddrop.xglue.commands.{command.name}")
        status = int(implementation.run(parsed))
    except SystemExit as stop:  # the parser has said what there is to say
        leaving = stop
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == __package__:
            raise
        message = f'error: {error.name} is not installed; in a checkout: pip install ".[xglue]"'
    except KeyboardInterrupt:
        status, message = INTERRUPTED, f"interrupted; {command.again}"
    except BrokenPipeError:
        status, message = NOBODY_READS, f"nobody reads the output; {command.again}"
    except (ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}; check the path and its permissions"
        message = f"error: {printable(text)}"
    failure = _write(sys.stdout)
    if failure is not None and not message:
        leaving = None
        if isinstance(failure, BrokenPipeError):
            status, message = NOBODY_READS, f"nobody reads the output; {command.again}"
        else:
            status, message = 2, f"error: the output could not be written: {failure.strerror}"
    if message:
        _end_bars()
        message = f"{f'graddrop {command.name}'.strip()}: {message}\n"
    _write(sys.stderr, message)
    if leaving is not None:
        raise leaving
    return status


def _write(stream: TextIO | None, text: str = "") -> OSError | None:
    """Write a text, and what was kept back before it; return what went wrong."""
    if stream is None:  # closed by whoever started this process
        return None
    try:
        stream.write(text)
        stream.flush()
    except OSError as failure:
        # Or Python would try once more when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return failure
    return None


def _end_bars() -> None:
    """End the lines of progress bars that are still open, or a message would stand within one."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    with suppress(OSError):
        for bar in list(bars):
            bar.close()


class _Parser(argparse.ArgumentParser):
    """One that asks whether a name close to an unknown option was meant."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            options = re.findall(r"--[a-z-]+", " ".join(self._helps()))
            for given in re.findall(r"--[\w-]+", message):
                message += meant(given, options)
        super().error(message)

    def _helps(self) -> list[str]:
        """Return the help of the parser and of its commands, in which all options stand."""
        return [self.format_help(), *(command.format_help() for command in self.commands)]

    commands: tuple[argparse.ArgumentParser, ...] = ()


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, complete for the command that the arguments call for."""
    parser = _Parser(prog="graddrop", description="Stochastic gradient masking for fine-tuning.")
    parser.add_argument("--version", action="version", version=f"graddrop {__version__}")
    names = [command.name for command in COMMANDS]
    given = arguments[0] if arguments else "--help"
    if not given.startswith("-") and given not in names:
        parser.error(
            f"unknown command {given!r}; expected one of {', '.join(names)}{meant(given, names)}"
        )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary, _ in COMMANDS:
        sentence = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=sentence)
        # The list of commands stays quick.
        if name == given:
            declared = import_module("graddrop.xglue.commands.arguments").ARGUMENTS
            declared[name](command)
            parser.commands = (command,)
    return parser


def _dashed(argument: str) -> str:
    """Return an option as it is spelt here: `--drop_prob=0.5` is `--drop-prob=0.5`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


if __name__ == "__main__":
    sys.exit(main())
