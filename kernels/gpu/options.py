"""How a launch is made: work per program, widths of accesses, what the compiler is told."""

import torch
import triton.language as tl

from .. import abi
from .decide import SOURCE_LONG_ROW
from .walk import TILES

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]  # param, grad, moments


def tiles_per_chunk(n_tiles: int, processors: int) -> int:
    """Tiles that a program walks one after the other, as few as leave each processor two programs.

    At most :data:`TILES`: a program reads some numbers before its first tile.
    """
    return min(max(n_tiles // (2 * processors), 1), TILES)


def dtype_constants(dtypes: Dtypes) -> dict[str, tl.dtype]:
    """What the step's kernels are told of the dtypes of (param, grad, moments)."""
    names = ("PARAM_DTYPE", "GRAD_DTYPE", "MOMENT_DTYPE")
    return {name: DTYPES[dtype] for name, dtype in zip(names, dtypes, strict=True)}


# Modes that leave an NVIDIA thread enough of 64 registers for 8 elements at a time.
_LIGHT_MODES = (1 << abi.SOURCE_NONE * abi.N_SITES) | sum(
    1 << (source * abi.N_SITES + site)
    for source in (abi.SOURCE_LOADED, abi.SOURCE_ELEMENT)
    for site in (abi.SITE_GRAD, abi.SITE_UPDATE)
)


def vector_width(dtypes: Dtypes, modes: int, stochastic: bool = False) -> int:
    """Neighbouring elements per thread: 128 bits hold 4 of 32 bits, or 8 of 16.

    Where 8 would spill registers, 16-bit tensors too go by 4, in 64-bit accesses.
    """
    narrow = all(dtype.itemsize == 2 for dtype in dtypes)
    return 8 if narrow and not stochastic and not modes & ~_LIGHT_MODES else 4


def launch_options(
    vector: int, backend: str, warp_size: int = 32, *, crowded: bool = False
) -> dict[str, int | bool]:
    """Compiler options.

    Half a tile is 512 elements, so the vector width sets the number of threads. 64 registers let 32
    warps live on an NVIDIA multiprocessor; only crowded code has to be told so. What fuses is said
    in the source.

    Args:
        vector: neighbouring elements per thread.
        backend: Triton's, "cuda" or "hip".
        warp_size: threads per warp: 32, or 64 on some of AMD's GPUs.
        crowded: the code would take a few registers more, see :func:`is_crowded`.
    """
    options: dict[str, int | bool] = {
        "num_warps": 512 // vector // warp_size,
        "enable_fp_fusion": False,
    }
    if backend == "cuda" and (crowded or vector == 8):
        options["maxnreg"] = 64
    return options


def is_crowded(modes: int, stochastic: bool) -> bool:
    """Whether a step's code takes a few registers more than it needs: it does more than one thing.

    Where it does more than two, fewer registers would spill.
    """
    rows = sum(1 << mode for mode in range(abi.SOURCE_ROW * abi.N_SITES, abi.N_MODES))
    long_rows = rows << (SOURCE_LONG_ROW.value - abi.SOURCE_ROW) * abi.N_SITES
    return modes.bit_count() == 2 or (
        modes.bit_count() == 1 and (stochastic or modes & (rows | long_rows) != 0)
    )
