"""Memory traffic of a step: bytes per entry of fp32 parameters, gradients and moments.

Each operation streams over operands larger than the cache, so each operand it reads or writes
counts once for each. Lines that are only written count once, although a CPU may read them first.
"""

_FP32 = 4
_BOOL = 1

# read param, grad, exp_avg, exp_avg_sq; write all but grad
ADAMW = 7 * _FP32
# write uniform numbers; read them, write the comparison; read both, write the gradient
EAGER_RAND = _FP32 + (_FP32 + _BOOL) + (2 * _FP32 + _BOOL) + ADAMW
# write zeros and ones; read them and the gradient, write the gradient
EAGER_BERNOULLI = _FP32 + 3 * _FP32 + ADAMW
# read and write one tensor: what bandwidth is measured with
IN_PLACE_PASS = 2 * _FP32
