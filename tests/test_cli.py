"""Laws of the command line."""

import subprocess
import sys
from importlib import import_module

import pytest

from graddrop.cli import COMMANDS, main


def test_help_is_quick() -> None:
    """No command's help loads transformers or datasets, which take seconds."""
    script = (
        "import sys; from graddrop.cli import COMMANDS, main\n"
        "for name in ['', *(name for name, _, _ in COMMANDS)]:\n"
        "    try: main([name, '--help'] if name else ['--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0, name\n"
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
    assert all(f"\n    {name} " in shown for name, _, _ in COMMANDS)


@pytest.mark.parametrize(("name", "module", "summary"), COMMANDS)
def test_every_row_names_a_command(name: str, module: str, summary: str) -> None:
    """A row's module offers the two functions that the command line calls."""
    implementation = import_module(module)
    assert callable(implementation.add_arguments) and callable(implementation.run)
    assert summary


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those there are."""
    with pytest.raises(SystemExit) as stop:
        main(["fine-tune"])
    assert stop.value.code == 2
    assert "invalid choice: 'fine-tune'" in capsys.readouterr().err


def test_an_error_of_the_users_is_one_line_and_status_2(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for what the user can mend."""
    pytest.importorskip("transformers", reason="needs the extra xglue")
    status = main(["finetune", "--task", "pos", "--data", "nowhere", "--output", f"{tmp_path}/run"])
    assert status == 2
    assert capsys.readouterr().err.startswith("graddrop finetune: error: nowhere: no such folder")
