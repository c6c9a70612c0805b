"""Virtual environments that borrow this one's packages, and commands run in them."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command to its end and return what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with our dependencies but without us; return its Python.

    The dependencies are those of the running interpreter, so nothing is downloaded. Its `.pth`
    files do not count there: an editable installation of ours stays out.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    dependencies = sysconfig.get_path("purelib")
    Path(site.strip(), "dependencies.pth").write_text(dependencies + "\n")
    return python


def install(python: Path, *what: str | Path, cwd: Path, **environment: str) -> None:
    """Install into another environment with what is on this machine."""
    pip = (sys.executable, "-m", "pip", "--python", python, "--quiet", "install", "--no-deps")
    run(*pip, "--no-build-isolation", "--no-index", *what, cwd=cwd, **environment)
