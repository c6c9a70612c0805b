"""Four processes that work together, and the backends that run on them."""

import pytest
from helpers.processes import gang


@pytest.fixture(scope="module")
def processes():
    """Four processes, for all tests of this module."""
    from helpers.sharded_runs import N_PROCESSES  # loads what most tests here do not need

    with gang(N_PROCESSES) as running:
        yield running


@pytest.fixture(params=["reference", "cpu"])
def process_backend(request):
    """The backends that run on processes without GPUs."""
    if request.param == "cpu":
        from graddrop.kernels.cpu import binding

        if not binding.LIBRARY.exists():
            pytest.skip(f"{binding.LIBRARY} is not built")
    return request.param
