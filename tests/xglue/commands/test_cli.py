"""Laws of the command line."""

import argparse
import dataclasses
import subprocess
import sys
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

from graddrop.cli import COMMANDS, main
from graddrop.xglue.commands import finetune
from graddrop.xglue.config import FinetuneConfig


def test_help_is_quick() -> None:
    """The list of commands loads no torch, a command's help no transformers or datasets."""
    script = (
        "import sys; from graddrop.cli import COMMANDS, main\n"
        "for name in ['', *(name for name, _ in COMMANDS)]:\n"
        "    try: main([name, '--help'] if name else ['--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0, name\n"
        "    assert name or 'torch' not in sys.modules\n"
        "    heavy = {'transformers', 'datasets', 'tokenizers'} & set(sys.modules)\n"
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
    assert all(f"\n    {name} " in shown for name, _ in COMMANDS)


@pytest.mark.parametrize(("name", "summary"), COMMANDS)
def test_every_row_names_a_command(name: str, summary: str) -> None:
    """A row's module offers the two functions that the command line calls."""
    implementation = import_module(f"graddrop.xglue.commands.{name}")
    assert callable(implementation.add_arguments) and callable(implementation.run)
    assert summary


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those there are."""
    with pytest.raises(SystemExit) as stop:
        main(["fine-tune"])
    assert stop.value.code == 2
    assert "invalid choice: 'fine-tune'" in capsys.readouterr().err


def parsed(*arguments: str) -> FinetuneConfig:
    """The configuration that `graddrop finetune` makes of its arguments."""
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    return finetune.config_from(parser.parse_args(arguments))


def test_every_setting_has_a_flag() -> None:
    """The flags are the fields, with the same defaults."""
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
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
        assert shown.endswith('is not installed; pip install "graddrop[xglue]"\n'), shown
    monkeypatch.setitem(sys.modules, "graddrop.xglue.commands.score", None)
    with pytest.raises(ModuleNotFoundError):
        main(["score"])


def test_a_commands_help_begins_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose names stay spelt as they are."""
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    assert "Fine-tune on one XGLUE task, score every language." in capsys.readouterr().out
