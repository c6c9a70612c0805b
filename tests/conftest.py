"""What holds for every test."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

# Where there is no GPU the Triton kernels run in Triton's interpreter. Triton reads this when it is
# imported, so it is said before any test file is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same state of torch's generators."""
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "cpu", pytest.param("triton", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend by name; skips, with the reason, what this installation cannot run."""
    from graddrop.kernels.cpu import binding

    if request.param == "triton" and not find_spec("triton"):
        pytest.skip("Triton is not installed")
    if request.param == "cpu":
        try:
            binding.load()
        except RuntimeError as error:
            pytest.skip(str(error))
    return request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the backend runs: Triton on the GPU, if there is one, else in its interpreter."""
    on_gpu = backend == "triton" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads from the user's cache of data sets or writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("datasets"))
        patch.setenv("HF_DATASETS_CACHE", cache)  # which is read when it is imported
        if datasets := sys.modules.get("datasets"):
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield
