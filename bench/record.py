"""What a benchmark record holds beside the rows that pytest-benchmark writes."""

from typing import Any

import pytest

# Rows that could not be measured: workload, peer, reason.
NOT_MEASURED = pytest.StashKey[list[dict[str, Any]]]()
