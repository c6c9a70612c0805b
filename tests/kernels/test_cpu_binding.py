"""Laws of the CPU kernel's binding: the library it loads, the threads and processes it runs in."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graddrop.kernels import abi
from graddrop.kernels.cpu import binding
from graddrop.step import backends
from graddrop.testing import F16, F32, F64, make_knobs, random_slot

pytestmark = pytest.mark.skipif(
    not binding.LIBRARY.exists() and shutil.which("c++") is None,
    reason="the CPU kernel is not built, and there is no C++ compiler to build it",
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget_what_was_loaded():
    """Load anew after each test."""
    yield
    binding.load.cache_clear()
    binding.is_available.cache_clear()


FORK = """
import os, signal, torch
from graddrop import testing
from graddrop.step.backends import make_executor
torch.set_num_threads(2)
def step():
    slot = testing.random_slot((200_000,), seed=0)
    knobs = [testing.make_knobs()]
    executor = make_executor("cpu", [slot], knobs, torch.device("cpu"))
    executor.begin(knobs, torch.zeros(2, dtype=torch.int64), None, None)
    executor.step(None)
    return slot.param
expected = step()
child = os.fork()
if child == 0:
    signal.alarm(20)
    torch.set_num_threads(1)  # torch's own operators would wait for threads that are gone
    torch.get_num_threads = lambda: 2
    os._exit(0 if torch.equal(step(), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks a threaded process")
def test_a_forked_process_can_step():
    """A child of a process that has stepped on several threads steps too, on one."""
    finished = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_step_brings_no_threads_of_its_own():
    """It runs on the threads that torch's operators have already."""
    if binding.load().gomp_parallel is None:
        pytest.skip("torch runs on another OpenMP than GNU's")
    threads = Path("/proc/self/task")
    large = torch.zeros(1 << 20)
    large.add_(1.0)  # torch starts its pool
    before = len(list(threads.iterdir()))
    slots, knobs = [random_slot((200_000,), seed=0)], [make_knobs()]
    executor = backends.make_executor("cpu", slots, knobs, CPU)
    executor.begin(knobs, torch.zeros(2, dtype=torch.int64), None, None)
    executor.step(None)
    assert len(list(threads.iterdir())) == before


def test_the_tables_have_the_same_columns_on_both_sides():
    """Each enumerator of abi.h has the value of the name in abi.py."""
    source = Path(binding.__file__).with_name("abi.h").read_text()
    names = re.findall(r"\b([A-Z][A-Z0-9_]+)\b", re.sub(r"//.*", "", source))
    shared = {name for name in names if hasattr(abi, name)}
    assert {"PARAM", "LAYOUT", "PERIOD", "MASKS_BEGUN", "N_SITES", "MAX_DIMS"} <= shared
    for body in re.findall(r"enum \w+ \{(.*?)\}", source, flags=re.DOTALL):
        value = -1
        for enumerator in filter(None, (part.strip() for part in body.split(","))):
            name, _, expression = (part.strip() for part in enumerator.partition("="))
            value = eval(expression, vars(abi).copy()) if expression else value + 1
            assert getattr(abi, name) == value, name


def test_a_missing_library_is_named_once(monkeypatch, tmp_path):
    """auto warns and takes the reference; the backend asked for by name refuses."""
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "nowhere.so")
    binding.load.cache_clear()
    binding.is_available.cache_clear()
    with pytest.raises(RuntimeError, match="cannot be loaded.*make ext"):
        backends.resolve("cpu", CPU, (F32, F32, F32))
    with pytest.warns(UserWarning, match="make ext"):
        assert backends.resolve("auto", CPU, (F32, F32, F32)) == "reference"
    assert backends.resolve("auto", CPU, (F32, F32, F32)) == "reference"  # and no second warning


def test_a_stale_library_is_refused(monkeypatch):
    """One that was built for other tables would read the wrong columns."""
    monkeypatch.setattr(abi, "N_TENSOR_COLUMNS", abi.N_TENSOR_COLUMNS + 1)
    binding.load.cache_clear()
    with pytest.raises(RuntimeError, match="stale.*make ext"):
        binding.load()


def test_a_library_without_a_function_is_refused(monkeypatch):
    """One that was built before it: the message names what is missing."""
    monkeypatch.setattr(binding, "_FUNCTIONS", (*binding._FUNCTIONS, "graddrop_of_tomorrow"))
    binding.load.cache_clear()
    with pytest.raises(RuntimeError, match="graddrop_of_tomorrow.*make ext"):
        binding.load()


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    """The message names what this machine runs."""
    monkeypatch.setenv("GRADDROP_CPU_ISA", "avx1024")
    binding.load.cache_clear()
    with pytest.raises(RuntimeError, match="avx1024.*baseline"):
        binding.load()


@pytest.mark.parametrize("dtypes", [(F16, F16, F32), (F64, F64, F64), (F32, F32, F16)])
def test_other_dtypes_are_refused(dtypes):
    """auto leaves them to the reference, by name they are an error."""
    assert not binding.supports(*dtypes)
    assert backends.resolve("auto", CPU, dtypes) == "reference"
    with pytest.raises(RuntimeError, match="no code"):
        backends.resolve("cpu", CPU, dtypes)
