"""Memory traffic of a step in bytes per entry.

Each operation streams over operands larger than the cache, so each operand it reads or writes
counts once for each. Lines that are only written count once, although a CPU may read them first.
"""

_BOOL = 1


def adamw(param: int, moment: int) -> int:
    """A step in one pass: read param, grad and both moments, write all but grad.

    Args:
        param: bytes of an entry of parameter and gradient.
        moment: bytes of an entry of each moment.
    """
    return 3 * param + 4 * moment


FP32 = adamw(4, 4)
# write uniform numbers; read them, write the comparison; read both, write the gradient
EAGER_RAND = 4 + (4 + _BOOL) + (2 * 4 + _BOOL) + FP32
# write zeros and ones; read them and the gradient, write the gradient
EAGER_BERNOULLI = 4 + 3 * 4 + FP32
# read the gradient, write the masked and scaled one and the mask; then copy it back
EAGER_DROPOUT = (2 * 4 + _BOOL) + 2 * 4 + FP32
# read the gradient for its norm; read and write it
CLIP_EAGER = 4 + 2 * 4 + FP32
# read the gradient for its norm
CLIP_IN_STEP = 4 + FP32
# read the gradient and the first moment
ALIGNED = 2 * 4 + FP32
# read and write one fp32 tensor: what bandwidth is measured with
IN_PLACE_PASS = 2 * 4
