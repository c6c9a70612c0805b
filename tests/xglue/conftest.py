"""Runs on toy tasks, and a way to look into them. Imports wait: not all tests here need them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy tasks; 32 sentences are 4 steps of 8 in an epoch."""
    from helpers.xglue_files import write_archive

    return write_archive(tmp_path_factory.mktemp("archive"), train=32, evaluation=3)


@pytest.fixture
def record(root: Path, tmp_path: Path) -> Callable[..., tuple[list[Any], dict[str, Any]]]:
    """A function that runs a method and returns what was seen, and the result."""
    from helpers.recorded_runs import Recorder

    from graddrop.xglue.training import run as train_module
    from graddrop.xglue.training.run import FinetuneConfig, finetune

    def run(look: Callable[[Any, Any], Any], **changes: Any) -> tuple[list[Any], dict[str, Any]]:
        recorder = Recorder(look)
        callbacks = train_module._callbacks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_module, "_callbacks", lambda config: [*callbacks(config), recorder])
            values = {"task": "pos", "data": str(root), "lr": 1e-3, "epochs": 3, "batch_size": 8}
            values |= {
                "max_length": 32,
                "output": str(tmp_path / f"run{len(list(tmp_path.iterdir()))}"),
            }
            result = finetune(FinetuneConfig(**{**values, **changes}))
        return recorder.seen, result

    return run
