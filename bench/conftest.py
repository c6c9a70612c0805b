"""How pytest runs the benchmarks: its options, its fixtures, what its records say."""

import signal
from types import FrameType
from typing import Any

import pytest
import torch

from bench.footprint import lacks
from bench.origin import commit
from bench.peers import PEERS
from bench.record import NOT_MEASURED
from bench.workloads import WORKLOADS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `make bench` passes on."""
    group = parser.getgroup("graddrop")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    group.addoption("--quick", action="store_true", help="few rounds: does it run, roughly how")


def _stop_once(signal_number: int, frame: FrameType | None) -> None:
    """Stop at the first SIGINT: `timeout` sends two, and the record is written in between."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def pytest_configure(config: pytest.Config) -> None:
    """Say what ends a run, and what does not."""
    config.stash[NOT_MEASURED] = {}
    signal.signal(signal.SIGINT, _stop_once)
    # Not of ours to forbid: what the peers' packages warn about.
    config.addinivalue_line("filterwarnings", "default")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with nothing measured of what was chosen, and pass over what the memory cannot hold."""
    device = torch.device(session.config.getoption("--device"))
    for item in session.items:
        keys = item.callspec.params
        workload = WORKLOADS[keys["workload_key"]]
        lack = lacks(workload.n_bytes, device)
        session.config.stash[NOT_MEASURED][item.nodeid] = {
            "workload": workload.name,
            "peer": PEERS[keys["peer_key"]].name,
            "reason": lack or "not begun",
        }
        if lack is not None:
            item.add_marker(pytest.mark.skip(reason=f"not measured: {lack}"))


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Write into the record what was not measured."""
    output_json["not_measured"] = [*config.stash[NOT_MEASURED].values()]


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Name the commit as every other record does."""
    commit_info.update(commit())


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
