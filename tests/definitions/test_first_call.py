"""Laws of a process's first maths call: it is small, so that one thread alone makes it.

The first call of a vectorised function (sqrt, exp, tanh, log, erf, sin) that torch spreads over two
threads sets the maths library up twice at once, and one thread computes with half of it. Children
of a process that has computed before do not show it, so these laws start Python anew.
"""

import os
import subprocess
import sys

import pytest
from helpers.root import ROOT

# The calls that torch is asked for while something is imported, with their numbers of elements.
LOGGED_IMPORT = """
import sys, torch
from torch.utils._python_dispatch import TorchDispatchMode

class Log(TorchDispatchMode):
    calls = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function.overloadpacket.__name__, result.numel()))
        return result

with Log():
    exec(sys.argv[1])
print(Log.calls)
"""

# Each function on two threads, the first result beside a later one.
FIRST_CALLS = """
import sys, torch
if sys.argv[2] == "with":
    import graddrop.mask
torch.set_num_threads(2)
x = torch.arange(1, 1 + (1 << 19), dtype=torch.float32) % 3001 / 1000
functions = [torch.sqrt, torch.exp, torch.tanh, torch.log, torch.erf, torch.sin]
turn = int(sys.argv[1]) % len(functions)
for function in functions[turn:] + functions[:turn]:
    first = function(x)
    function(x)
    assert torch.equal(first, function(x)), function.__name__
"""


def python(code: str, *arguments: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that sees this checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "use",
    [
        "import graddrop.optimizer",
        "import graddrop.functional",
        "from graddrop.xglue.config import FinetuneConfig; FinetuneConfig('pos', 'data', 'output')",
    ],
)
def test_the_first_maths_call_is_of_one_element(use):
    """Whatever of the package is used first sets the maths library up."""
    done = python(LOGGED_IMPORT, use)
    assert done.returncode == 0, done.stderr
    calls = eval(done.stdout)
    assert [call for call in calls if call[0] not in ("ones", "empty")][0] == ("sqrt", 1)


@pytest.mark.slow
def test_sixty_processes_compute_alike():
    """A fault of 7 % would show in one of 60 processes with probability .99."""
    results = [python(FIRST_CALLS, str(turn), "with", threads=2) for turn in range(60)]
    assert [done.stderr for done in results if done.returncode] == []
