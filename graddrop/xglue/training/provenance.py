"""Which code made a result: the versions of the packages, and the commit of this one."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import graddrop

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")


def versions(*further: str) -> dict[str, str]:
    """Return the versions of what takes part in a run, by name.

    Args:
        further: Packages that take part in this one.
    """
    return {
        "python": platform.python_version(),
        "graddrop": graddrop.__version__,
        **{name: version(name) for name in (*_PACKAGES, *further)},
    }


def commit(*beside: str) -> str | None:
    """Return the commit of this package, with `-dirty` after it if its files have been edited.

    `GRADDROP_COMMIT` names it for a copy of the files without `.git`.

    Args:
        beside: Folders of the checkout in which edits count as well, such as `bench`.

    Returns:
        None for an installed package, or where there is no git.
    """
    named = os.environ.get("GRADDROP_COMMIT")
    if named:
        return named
    folder = Path(graddrop.__file__).parent
    # A package installed into an environment below another checkout is no part of that.
    if not _git(folder, "ls-files", "__init__.py"):
        return None
    found = _git(folder, "rev-parse", "HEAD")
    folders = [".", *(f"../{name}" for name in ("kernels", *beside))]
    edited = _git(folder, "status", "--porcelain", "--untracked-files=no", *folders)
    return f"{found}-dirty" if found and edited else found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
