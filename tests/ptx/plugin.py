"""For pytest: the Triton kernels of all tests are compiled for a GPU, and executed here.

    PYTHONPATH=tests python -m pytest -p ptx.plugin --execute sm_90 tests/kernels/test_triton.py

``--order N``: warps run in a random order of that seed. ``--lean up``: approximate instructions err
upward as far as PTX allows; or ``down``, ``either``, ``exact``. A test that looks at what was
executed, such as the sectors that a step moves, takes the fixture ``execution`` and lies in
tests/kernels/executed, where pytest looks with this plugin only.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "0"  # before anything imports Triton
from .approximate import LEANS
from .machine import Rules

if TYPE_CHECKING:
    from .launches import Execution

EXECUTION = pytest.StashKey["Execution"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is compiled for, and what PTX leaves open."""
    parser.addoption("--execute", default="sm_90", help="sm_80, sm_90, sm_100")
    parser.addoption("--order", type=int, default=None, help="seed of a random order of warps")
    parser.addoption("--lean", choices=LEANS, default="exact", help="how approximations err")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """All tests run with kernels that are executed; what they launched is said in the end."""
    from .launches import executed

    torch.set_num_threads(1)
    option = session.config.option
    rules = Rules(order=option.order, lean=option.lean)
    with executed(option.execute, rules) as execution:
        session.config.stash[EXECUTION] = execution
        done = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line(f"\nexecuted for {option.execute}: {dict(execution.total)}")
    return done


@pytest.fixture
def execution(request: pytest.FixtureRequest) -> "Execution":
    """How this test's kernels are executed; its ``launches`` are those of this test."""
    execution = request.config.stash[EXECUTION]
    execution.launches.clear()
    return execution
