"""The command line of the benchmarks."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `make bench` passes on."""
    group = parser.getgroup("graddrop")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    group.addoption("--quick", action="store_true", help="few rounds: does it run, roughly how")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where to measure."""
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("not measured: this machine has no GPU")
    return torch.device(name)


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether a rough result is enough."""
    return bool(request.config.getoption("--quick"))
