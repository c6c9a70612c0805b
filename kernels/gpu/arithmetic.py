"""Root, quotient and wide product: Triton's own, or better instructions where there is PTX."""

import triton
import triton.language as tl


@triton.jit
def root(x, PTX: tl.constexpr):
    """sqrt(x) to 1 ulp: fp32, any shape.

    tl.sqrt becomes sqrt.approx.ftz in PTX, which takes subnormal numbers for 0. Such are the second
    moments of gradients below 1e-18, whose update would be m / eps.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "sqrt.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.sqrt(x)


@triton.jit
def quotient(a, b, PTX: tl.constexpr):
    """a / b to 2 ulp for b = 0 or b in [2**-126, 2**126]: fp32, any shape.

    Triton's division becomes div.full in PTX, which spends seven more instructions on other b. Here
    b is the root of an fp32 number, so 0 or at least 3.7e-23, plus eps, which `prepare` keeps from
    being subnormal.
    """
    if PTX:
        return a * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return a / b


@triton.jit
def wide_product(a, FACTOR: tl.constexpr, PTX: tl.constexpr):
    """a * FACTOR: uint32, any shape, times 32 bits gives uint64.

    One instruction. LLVM narrows one half of such a product, which then are two.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "mul.wide.u32 $0, $1, $2;",
            "=l,r,r",
            [a, tl.full(a.shape, FACTOR, tl.uint32)],
            dtype=tl.uint64,
            is_pure=True,
            pack=1,
        )
    else:
        return a.to(tl.uint64) * FACTOR
