"""Code for each mode that occurs in a launch, and the choice of a tensor's own among them."""

import triton
import triton.language as tl

from .. import abi
from .decide import SOURCE_LONG_ROW

# kernels see globals only as constexpr
_N_SITES, _N_SOURCES = tl.constexpr(abi.N_SITES), tl.constexpr(SOURCE_LONG_ROW.value + 1)
_ONE = tl.constexpr(1)


@triton.jit
def call_for_mode(
    mode,  # scalar: of the tensor, N_SITES * source + site
    MODES: tl.constexpr,  # bit m is set iff a tensor of the launch has mode m
    function: tl.constexpr,  # its last two arguments are SOURCE and SITE
    arguments,  # the others; a tuple that is written in the call, which keeps constants constant
):
    """Call the copy of ``function`` that is compiled for the tensor's mode."""
    for source in tl.static_range(_N_SOURCES):
        for site in tl.static_range(_N_SITES):
            if (_ONE << (_N_SITES * source + site)) & MODES:
                if mode == _N_SITES * source + site:
                    function(*arguments, source, site)
