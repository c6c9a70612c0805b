"""What holds for every test."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

# Where there is no GPU the Triton kernels run in Triton's interpreter. Triton reads this when it is
# imported, so it is said before any test file is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads from the user's cache of data sets or writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("datasets"))
        patch.setenv("HF_DATASETS_CACHE", cache)
        if find_spec("datasets"):
            import datasets

            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield
