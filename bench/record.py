"""What a benchmark record holds beside the rows that pytest-benchmark writes."""

from typing import Any

import pytest

# Rows that are not measured, by the test that is to do it: workload, peer, reason.
NOT_MEASURED = pytest.StashKey[dict[str, dict[str, Any]]]()
