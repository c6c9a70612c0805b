"""Laws of the command line."""

import argparse
import dataclasses
import os
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

import graddrop
from graddrop.cli import COMMANDS, INTERRUPTED, NOBODY_READS, Command, main
from graddrop.mask import GRANULARITIES
from graddrop.reference import SITES
from graddrop.xglue.commands import finetune
from graddrop.xglue.commands.arguments import ARGUMENTS
from graddrop.xglue.config import FinetuneConfig
from graddrop.xglue.tasks import TASKS
from graddrop.xglue.training.pretrain_config import PretrainConfig


def test_help_is_quick() -> None:
    """No command's help loads what takes seconds."""
    script = (
        "import sys; from graddrop.cli import COMMANDS, main\n"
        "for name in ['', *(command.name for command in COMMANDS)]:\n"
        "    try: main([name, '--help'] if name else ['--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0, name\n"
        "    heavy = {'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: graddrop") == 1 + len(COMMANDS)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of commands is what the user reads."""
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {command.name} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_row_names_a_command(command: Command) -> None:
    """Its module offers the function that the command line calls; its arguments are declared."""
    assert callable(import_module(f"graddrop.xglue.commands.{command.name}").run)
    assert command.summary
    assert list(ARGUMENTS) == [command.name for command in COMMANDS]


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's own."""
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"graddrop {graddrop.__version__}\n"


def help_of(name: str) -> str:
    """A command's help, in one line."""
    parser = argparse.ArgumentParser(prog=name)
    ARGUMENTS[name](parser)
    return " ".join(parser.format_help().split())


@pytest.mark.parametrize(
    ("name", "config"), [("finetune", FinetuneConfig), ("pretrain", PretrainConfig)]
)
def test_help_shows_every_default(name: str, config: type) -> None:
    """The configuration's own, or in words where another table has it."""
    parser = argparse.ArgumentParser()
    ARGUMENTS[name](parser)
    helps = {action.dest: action.help or "" for action in parser._actions}
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING or field.name == "verify":
            continue
        said = helps[field.name].rpartition("(default: ")[2]
        assert said.endswith(")"), field.name
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            assert said == f"{field.default})"


def test_help_names_every_value() -> None:
    """Those of the knobs, too, whose home would have to be imported."""
    shown = help_of("finetune")
    for names in (GRANULARITIES, SITES):
        assert f"{', '.join(names[:-1])} or {names[-1]}" in shown
    assert all(name in shown for name in TASKS)


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those there are, and asks whether a close one was meant."""
    with pytest.raises(SystemExit) as stop:
        main(["fine-tune"])
    assert stop.value.code == 2
    message = "unknown command 'fine-tune'; expected one of demo, pretrain, finetune, report, sweep"
    shown = capsys.readouterr().err
    assert message in shown and shown.endswith("score; did you mean 'finetune'?\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drop-porb", "0.3"], "unrecognized arguments: --drop-porb 0.3; did you mean '--drop-"),
        (["--zzz"], "unrecognized arguments: --zzz\n"),
        (["--task", "poss"], "wpr, qam; did you mean 'pos'?"),
        (["--method", "layer_graddrop"], "batch-matched; did you mean 'layer-graddrop'?"),
        (["--select", "en_dev"], "last; did you mean 'en-dev'?"),
        (["--exempt", "heads"], "unknown exempt 'heads'; expected one of head, embeddings, "),
        (["--config", "CONFIG"], "unknown setting 'drop_porb'; known: task, data, output"),
        (["--config", "CONFIG"], "verify; did you mean 'drop_prob'?"),
    ],
)
def test_what_was_meant_is_asked(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For options, tasks, methods and all other names, wherever they are given."""
    (tmp_path / "run.toml").write_text("drop-porb = 0.3")
    arguments = [str(tmp_path / "run.toml") if text == "CONFIG" else text for text in arguments]
    try:
        status = main(["finetune", "--task", "pos", "--data", "D", "--output", "O", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_underscores_are_dashes_in_options(tmp_path: Path) -> None:
    """And nowhere else."""
    seen: list[argparse.Namespace] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "run", lambda args: seen.append(args) or 0)
        assert main(["finetune", "--drop_prob=0.25", "--limit_eval", "3", "--model", "a_b"]) == 0
        assert main(["finetune", "--model=--a_b"]) == 0
    assert (seen[0].drop_prob, seen[0].limit_eval, seen[0].model) == ([0.25], 3, "a_b")
    assert seen[1].model == "--a_b"


def parsed(*arguments: str) -> FinetuneConfig:
    """The configuration that `graddrop finetune` makes of its arguments."""
    parser = argparse.ArgumentParser()
    ARGUMENTS["finetune"](parser)
    return finetune.config_from(parser.parse_args(arguments))


def test_every_setting_has_a_flag() -> None:
    """The flags are the fields, with the same defaults."""
    parser = argparse.ArgumentParser()
    ARGUMENTS["finetune"](parser)
    names = {field.name for field in dataclasses.fields(FinetuneConfig)}
    flags = {action.dest for action in parser._actions} - {"help", "config", "resume"}
    assert flags == names
    required = {"task": "pos", "data": "D", "output": "O"}
    assert parsed(*chain(*((f"--{k}", v) for k, v in required.items()))) == FinetuneConfig(
        **required
    )


def test_a_file_holds_settings_and_flags_win(tmp_path: Path) -> None:
    """Dashes and underscores are the same in a name; lists become tuples."""
    path = tmp_path / "run.toml"
    path.write_text(
        'task = "ner"\ndata = "D"\noutput = "O"\nmax-steps = 5\nlr = 1e-4\n'
        'exempt = ["head", "norms"]\nrescale = true\nperiod = "epoch"\n'
    )
    made = parsed("--config", str(path), "--lr", "2e-4", "--no-rescale", "--period", "7")
    assert made == FinetuneConfig(
        "ner",
        "D",
        "O",
        max_steps=5,
        lr=2e-4,
        exempt=("head", "norms"),
        rescale=False,
        period=7,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task = "pos"\nrate = 1\n', "unknown setting 'rate'; known: task, data"),
        ("task = pos", "expected TOML"),
        ('task = "pos"', "run.toml: data is missing"),
        ('task = "pos"\ndata = "D"\noutput = "O"\nlr = "big"', "a setting has the wrong type"),
    ],
)
def test_bad_files_of_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    """What was expected."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parsed("--config", str(path))


def test_an_error_of_the_users_is_one_line_and_status_2(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what the user can mend."""
    pytest.importorskip("transformers", reason="needs the extra xglue")
    status = main(["finetune", "--task", "pos", "--data", "nowhere", "--output", f"{tmp_path}/run"])
    assert status == 2
    assert capsys.readouterr().err.startswith("graddrop finetune: error: nowhere: no such folder")


def test_a_path_that_cannot_be_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the system's reason and what to do, not the number of an error."""
    assert main(["sweep", f"{tmp_path}/plan.toml"]) == 2
    reason = f"{tmp_path}/plan.toml: No such file or directory; check the path"
    assert capsys.readouterr().err.startswith(f"graddrop sweep: error: {reason}")


def test_a_name_alone_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever types `graddrop` wants to know what there is."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert "Stochastic gradient masking" in capsys.readouterr().out


def test_a_missing_library_is_one_line_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For every command that needs the extra; a module of ours that is missing is our mistake."""
    arguments = {
        "demo": ["--output", f"{tmp_path}/demo"],
        "pretrain": ["--text", str(tmp_path), "--output", f"{tmp_path}/model"],
        "finetune": ["--task", "pos", "--data", str(tmp_path), "--output", f"{tmp_path}/run"],
        "sweep": [f"{tmp_path}/plan.yaml"],
    }
    (tmp_path / "plan.yaml").write_text("")
    (tmp_path / "en.txt").write_text("a b\n")
    (tmp_path / "POS").mkdir()
    for library in ("transformers", "accelerate", "datasets", "tokenizers", "yaml"):
        monkeypatch.setitem(sys.modules, library, None)
    for command, rest in arguments.items():
        assert main([command, *rest]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"graddrop {command}: error: "), shown
        assert shown.endswith('is not installed; in a checkout: pip install ".[xglue]"\n'), shown
    monkeypatch.setitem(sys.modules, "graddrop.xglue.commands.score", None)
    with pytest.raises(ModuleNotFoundError):
        main(["score", "--task", "pos", "--predictions", "P", "--data", "D"])


CALLS = {
    "demo": ["demo", "--output", "O"],
    "pretrain": ["pretrain", "--text", "T", "--output", "O"],
    "finetune": ["finetune"],
    "report": ["report", "R"],
    "sweep": ["sweep", "P"],
    "score": ["score", "--task", "pos", "--predictions", "P", "--data", "D"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_who_interrupts_is_told_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, no traceback."""

    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    module = import_module(f"graddrop.xglue.commands.{command.name}")
    monkeypatch.setattr(module, "run", interrupted)
    assert main(CALLS[command.name]) == INTERRUPTED == 130
    again = {
        "finetune": "the same command with --resume goes on",
        "sweep": "the same command goes on",
        "demo": "the same command goes on",
    }.get(command.name, "nothing is left behind")
    assert capsys.readouterr().err == f"graddrop {command.name}: interrupted; {again}\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), BrokenPipeError()])
def test_what_ends_a_command_is_said_in_a_line_of_its_own(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the progress bar that it has interrupted, which comes no more."""
    tqdm = pytest.importorskip("tqdm", reason="needs the extra xglue")
    bars = []

    def run(args: argparse.Namespace) -> int:
        bars.append(tqdm.tqdm(total=4, file=sys.stderr))
        bars[0].update()
        raise error

    monkeypatch.setattr(finetune, "run", run)
    assert main(["finetune"]) != 0
    bars[0].close()
    *_, bar, said = capsys.readouterr().err.splitlines()
    assert "1/4" in bar and "graddrop" not in bar
    assert said.startswith("graddrop finetune: ") and "1/4" not in said


@pytest.mark.parametrize("lines", [1, 100_000])
def test_who_does_not_read_the_output_is_no_error(
    lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `graddrop finetune | true`, whether it shows while it is printed or at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(finetune, "run", lambda args: print("score\n" * lines) or 0)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main(["finetune"]) == NOBODY_READS == 141
    shown = capsys.readouterr().err
    assert shown == (
        "graddrop finetune: nobody reads the output; the same command with --resume goes on\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], NOBODY_READS, "graddrop: nobody reads the output; nothing is left behind\n"),
        (["finetune", "--version"], 2, "unrecognized arguments: --version"),
        (["finetune", "--lr", "0"], 2, "graddrop finetune: error: "),
    ],
)
@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_closed_pipe_takes_no_other_words_with_it(
    arguments: list[str],
    status: int,
    said: str,
    closed: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Help that nobody reads; errors that somebody does, or nobody; and Python says nothing."""
    run = finetune.run
    monkeypatch.setattr(finetune, "run", lambda args: print("kept back") or run(args))
    with ExitStack() as stack:
        for name in closed:
            reading, writing = os.pipe()
            os.close(reading)
            nobody = stack.enter_context(os.fdopen(writing, "w"))
            monkeypatch.setattr(sys, name, nobody)
        try:
            found = main(arguments)
        except SystemExit as stop:
            found = stop.code
    assert found == (0 if status == NOBODY_READS and "stdout" not in closed else status)
    shown = capsys.readouterr().err
    assert (said in shown) == ("stderr" not in closed and (status == 2 or "stdout" in closed))


def test_output_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the disk is full; whoever has closed the output wants none."""
    monkeypatch.setattr(finetune, "run", lambda args: print("score") or 0)
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main(["finetune"]) == 2
        said = "graddrop finetune: error: the output could not be written: No space left on device"
        assert capsys.readouterr().err == f"{said}\n"
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["finetune"]) == 0


def test_errors_do_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters out of a file's name or its content are shown, not sent."""
    folder = tmp_path / "a\x1b[2Jb\u202ec"
    folder.mkdir()
    assert main(["finetune", "--task", "pos", "--data", str(folder), "--output", "O"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and "\u202e" not in shown
    assert r"a\x1b[2Jb\u202ec: holds none of the tasks' folders" in shown


def test_a_commands_help_begins_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose names stay spelt as they are."""
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    assert "Fine-tune on one XGLUE task, score every language." in capsys.readouterr().out
