"""Seals of checkpoints: whether all of their files are still there, at their full sizes."""

import os
from pathlib import Path
from typing import Any

from graddrop.xglue.textfile import TextFileError, read_json
from graddrop.xglue.whole_file import write_json

SEAL_FILE = "seal.json"


def seal(checkpoint: Path, note: dict[str, float]) -> None:
    """Declare a checkpoint whole.

    Args:
        checkpoint: Folder whose files are all written.
        note: Numbers to keep with it.

    Raises:
        OSError: If the disk fails; the checkpoint is then not sealed.
    """
    sizes = {}
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file() and file.name != SEAL_FILE:
            with file.open("rb") as handle:
                # The seal must not reach the disk before what it vouches for.
                os.fsync(handle.fileno())
            sizes[str(file.relative_to(checkpoint))] = file.stat().st_size
    write_json(checkpoint / SEAL_FILE, {"sizes": sizes, "note": note})


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was sealed and still has every file at its full size."""
    seal_ = _seal(checkpoint)
    return bool(seal_["sizes"]) and all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in seal_["sizes"].items()
    )


def seal_note(checkpoint: Path) -> dict[str, float]:
    """Return what was kept with the seal of a whole checkpoint."""
    return _seal(checkpoint)["note"]


def _seal(checkpoint: Path) -> dict[str, dict[str, float]]:
    """Return what a seal says; one that is absent, or not as we write it, seals nothing."""
    try:
        seal_ = read_json(checkpoint / SEAL_FILE)
    except (FileNotFoundError, TextFileError):
        seal_ = {}
    found = seal_ if isinstance(seal_, dict) else {}
    parts: dict[str, Any] = {name: found.get(name) for name in ("sizes", "note")}
    of_numbers = all(
        isinstance(part, dict) and all(isinstance(value, int | float) for value in part.values())
        for part in parts.values()
    )
    return parts if of_numbers else {"sizes": {}, "note": {}}
