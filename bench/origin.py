"""Where and from what a record was measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import cpuinfo
import torch

import graddrop
from graddrop.xglue.training import provenance


def commit() -> dict[str, Any]:
    """Name the commit: ``id``, "unversioned" where there is none, and whether it is ``dirty``."""
    named = provenance.commit("bench") or "unversioned"
    return {"id": named.removesuffix("-dirty"), "dirty": named.endswith("-dirty")}


def origin(device: torch.device) -> dict[str, Any]:
    """Describe machine, versions, commit and date.

    Args:
        device: Where it was measured.
    """
    on_gpu = device.type == "cuda"
    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if on_gpu else None,
            "cpu": cpuinfo.get_cpu_info()["brand_raw"],
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            "graddrop": graddrop.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }
