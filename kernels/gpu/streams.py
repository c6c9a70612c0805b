"""Tables that are made on one CUDA stream and read on others."""

from collections.abc import Iterable

import torch
from torch import Tensor


def keep_for_current_stream(device: torch.device, tables: Iterable[Tensor]) -> None:
    """Let nobody have the tables' memory before the current stream is done with what it does next.

    torch gives freed memory away in the order of the stream on which it was asked for. A plan that
    was made on a side stream, as when a graph is warmed up, and is then replaced while another
    stream still reads its tables, would be overwritten under it.

    Args:
        device: of the tables; on a CPU there are no streams.
        tables: all that a launch may read or write and nobody else keeps. A graph that is being
            captured keeps them itself.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return
    stream = torch.cuda.current_stream(device)
    for table in tables:
        table.record_stream(stream)  # nothing on the stream on which it was made
