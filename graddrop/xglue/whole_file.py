"""Files that are there as a whole or not at all, whenever their writer was killed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that is there as a whole or not at all.

    Args:
        path: Where; an older file of that name stays until the new one is complete.
        value: What `json` can write.

    Raises:
        OSError: If the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all.

    Args:
        path: Where; an older file of that name stays until the new one is complete.
        content: All of it.

    Raises:
        OSError: If the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    # The name of the process keeps two writers apart; the suffix keeps readers away.
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        # The draft means nothing to the user.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a place where nothing can be written; leave no trace of having asked.

    Args:
        path: What is to be made, with the folders above it.

    Raises:
        OSError: If the place is no folder, may not be written, or its disk is full or read-only.
    """
    place = path
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever is raised while files are written into an `OSError`.

    Where the disk is full torch raises a `RuntimeError`, safetensors an error of its own, and
    tokenizers a plain `Exception`. Errors of a device, whose memory is being read, stay what they
    are.

    Args:
        path: What is being written, for the message.

    Raises:
        OSError: With the space that is left, since a full disk is the usual cause.
    """
    import torch

    try:
        yield
    except (OSError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        raise OSError(
            f"{path} could not be written, {free:,} bytes are free there ({error}); "
            "make room and go on with --resume"
        ) from error
