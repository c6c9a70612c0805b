"""Machine code of the Triton kernels, compiled ahead of time: what can be promised with no GPU.

    python -m bench.sass            tables for sm_90 and gfx942, and whether other targets compile
    python -m bench.sass --json     the same as JSON, for the tests

Needs Triton's own nvdisasm and cuobjdump, which its wheel carries, and no GPU. The kernels must not
have been imported under TRITON_INTERPRET=1.
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from bench.machine_code import AmdReport, Report, amd_report, report
from graddrop.kernels import abi
from graddrop.kernels.gpu.decide import SOURCE_LONG_ROW
from graddrop.kernels.gpu.dots import dense_dots, strided_dots
from graddrop.kernels.gpu.launch import PREPARE_BLOCK
from graddrop.kernels.gpu.norm import dense_squares, strided_squares, sum_chunks
from graddrop.kernels.gpu.options import (
    DTYPES,
    Dtypes,
    dtype_constants,
    is_crowded,
    launch_options,
    vector_width,
)
from graddrop.kernels.gpu.prepare import prepare
from graddrop.kernels.gpu.step import dense_step, strided_step

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
PLAIN = 1 << 0
ELEMENT = 1 << (abi.SOURCE_ELEMENT * abi.N_SITES + abi.SITE_GRAD)
ROW = 1 << (abi.SOURCE_ROW * abi.N_SITES + abi.SITE_GRAD)
LONG_ROW = 1 << (SOURCE_LONG_ROW.value * abi.N_SITES + abi.SITE_GRAD)
TENSOR_FREEZE = 1 << (abi.SOURCE_TENSOR * abi.N_SITES + abi.SITE_FREEZE)
FREEZE = 1 << (abi.SOURCE_ELEMENT * abi.N_SITES + abi.SITE_FREEZE)
UPDATE = 1 << (abi.SOURCE_ELEMENT * abi.N_SITES + abi.SITE_UPDATE)
LOADED = 1 << (abi.SOURCE_LOADED * abi.N_SITES + abi.SITE_GRAD)
LOADED_FREEZE = 1 << (abi.SOURCE_LOADED * abi.N_SITES + abi.SITE_FREEZE)
SEVERAL = PLAIN | ELEMENT | LONG_ROW | TENSOR_FREEZE

CASES = {  # dtypes, modes, stochastic rounding
    "fp32, no mask": ((F32, F32, F32), PLAIN, False),
    "fp32, element mask": ((F32, F32, F32), ELEMENT, False),
    "fp32, element mask beside exempt tensors": ((F32, F32, F32), PLAIN | ELEMENT, False),
    "fp32, element mask, freeze": ((F32, F32, F32), FREEZE, False),
    "fp32, element mask, update": ((F32, F32, F32), UPDATE, False),
    "fp32, row mask": ((F32, F32, F32), LONG_ROW, False),
    "fp32, row mask, rows of other sizes": ((F32, F32, F32), ROW, False),
    "fp32, layer mask, freeze": ((F32, F32, F32), TENSOR_FREEZE, False),
    "fp32, loaded mask": ((F32, F32, F32), LOADED, False),
    "fp32, loaded mask, freeze": ((F32, F32, F32), LOADED_FREEZE, False),
    "all bf16, loaded mask": ((BF16, BF16, BF16), LOADED, False),
    "all bf16, loaded mask, freeze": ((BF16, BF16, BF16), LOADED_FREEZE, False),
    "bf16 with fp32 moments, element mask": ((BF16, BF16, F32), ELEMENT, False),
    "fp16 with fp32 moments, element mask": ((F16, F16, F32), ELEMENT, False),
    "all bf16, element mask": ((BF16, BF16, BF16), ELEMENT, False),
    "all bf16, element mask, freeze": ((BF16, BF16, BF16), FREEZE, False),
    "bf16 with fp32 moments, element mask, stochastic rounding": ((BF16, BF16, F32), ELEMENT, True),
    "all bf16, element mask, stochastic rounding": ((BF16, BF16, BF16), ELEMENT, True),
    "fp32, four modes in one launch": ((F32, F32, F32), SEVERAL, False),
}

AMD_CASES = (  # of CASES, for gfx942
    "fp32, element mask",
    "fp32, row mask",
    "bf16 with fp32 moments, element mask, stochastic rounding",
)

NORM_CASES = {  # dtype of the gradients, modes, masked
    "fp32, norm of all": (F32, ELEMENT, False),
    "fp32, norm of what an element mask keeps": (F32, ELEMENT, True),
    "bf16, norm of what an element mask keeps": (BF16, ELEMENT, True),
    "fp32, norm of what a loaded mask keeps": (F32, LOADED, True),
    "bf16, norm of what a loaded mask keeps": (BF16, LOADED, True),
}

DOTS_CASES = {  # dtypes of gradients and moments
    "fp32, products": (F32, F32),
    "bf16 with fp32 moments, products": (BF16, F32),
    "all bf16, products": (BF16, BF16),
}

ARGUMENTS = {  # of all kernels; their other ones are constants
    "chunks": "*i32",
    "spans": "*i32",
    "tensor_table": "*i64",
    "layout_table": "*i64",
    "group_table": "*fp64",
    "counters": "*i64",
    "arrived": "*i32",
    "floats": "*fp32",
    "ints": "*i32",
    "partials": "*fp64",
    "squares": "*fp64",
    "grad_scale": "*fp32",
    "found_inf": "*fp32",
    "n_tensors": "i32",
    "tiles": "i32",
    "first": "i32",
    "room": "i32",
}


def compile_kernel(
    fn: Any,
    target: GPUTarget,
    constants: dict[str, Any],
    vector: int = 4,
    crowded: bool = False,
) -> CompiledKernel:
    """Compile a kernel for a target as its launch would, every pointer a multiple of 16 bytes."""
    signature = {name: ARGUMENTS.get(name, "constexpr") for name in fn.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=aligned)
    options = launch_options(vector, target.backend, target.warp_size, crowded=crowded)
    return triton.compile(source, target=target, options=options)


def compile_dense(
    dtypes: Dtypes,
    modes: int,
    target: GPUTarget,
    aligned: bool = True,
    stochastic: bool = False,
) -> CompiledKernel:
    """``dense_step``."""
    vector = vector_width(dtypes, modes, stochastic)
    constants = {
        **dtype_constants(dtypes),
        "MODES": modes,
        "ALIGNED": aligned,
        "VECTOR": vector,
        "STOCHASTIC": stochastic,
        "PTX": target.backend == "cuda",
    }
    crowded = is_crowded(modes, stochastic)
    return compile_kernel(dense_step, target, constants, vector, crowded)


def compile_squares(
    grad_dtype: torch.dtype, modes: int, masked: bool, target: GPUTarget
) -> CompiledKernel:
    """``dense_squares``."""
    vector = 16 // grad_dtype.itemsize
    constants = {
        "GRAD_DTYPE": DTYPES[grad_dtype],
        "MASKED": masked,
        "MODES": modes if masked else 1,
        "ALIGNED": True,
        "VECTOR": vector,
        "PTX": target.backend == "cuda",
    }
    return compile_kernel(dense_squares, target, constants, vector)


def compile_dots(
    grad_dtype: torch.dtype, moment_dtype: torch.dtype, target: GPUTarget
) -> CompiledKernel:
    """``dense_dots``."""
    dtypes = {"GRAD_DTYPE": DTYPES[grad_dtype], "MOMENT_DTYPE": DTYPES[moment_dtype]}
    constants = {**dtypes, "ALIGNED": True, "VECTOR": 4}
    return compile_kernel(dense_dots, target, constants)


def step_reports() -> dict[str, Report]:
    """Every case of ``dense_step`` for sm_90."""
    return {
        name: report(
            compile_dense(dtypes, modes, TARGETS["sm_90"], stochastic=stochastic),
            vector_width(dtypes, modes, stochastic),
        )
        for name, (dtypes, modes, stochastic) in CASES.items()
    }


def amd_reports() -> dict[str, AmdReport]:
    """Some cases of ``dense_step`` for gfx942."""
    found = {}
    for name in AMD_CASES:
        dtypes, modes, stochastic = CASES[name]
        kernel = compile_dense(dtypes, modes, TARGETS["gfx942"], stochastic=stochastic)
        found[name] = amd_report(kernel, vector_width(dtypes, modes, stochastic))
    return found


def norm_reports() -> dict[str, Report]:
    """Every case of ``dense_squares`` for sm_90."""
    return {
        name: report(
            compile_squares(grad_dtype, modes, masked, TARGETS["sm_90"]),
            16 // grad_dtype.itemsize,
            operands=1,
        )
        for name, (grad_dtype, modes, masked) in NORM_CASES.items()
    }


def dots_reports() -> dict[str, Report]:
    """Every case of ``dense_dots`` for sm_90."""
    return {
        name: report(compile_dots(*dtypes, TARGETS["sm_90"]), 4, operands=2)
        for name, dtypes in DOTS_CASES.items()
    }


def compiles_everywhere() -> dict[str, list[str]]:
    """Target -> the kernels that were compiled to its machine code."""
    done: dict[str, list[str]] = {}
    for name, target in TARGETS.items():
        binary = "cubin" if target.backend == "cuda" else "hsaco"
        fp32 = {**dtype_constants((F32, F32, F32)), "STOCHASTIC": False}
        fp32["PTX"] = target.backend == "cuda"
        masked = {"GRAD_DTYPE": DTYPES[F32], "MASKED": True}
        moments = {"GRAD_DTYPE": DTYPES[F32], "MOMENT_DTYPE": DTYPES[F32]}
        some = {"MODES": ELEMENT | ROW | LOADED}
        kernels = {
            "prepare": compile_kernel(prepare, target, {"BLOCK": PREPARE_BLOCK}),
            "dense_step fp32": compile_dense((F32, F32, F32), PLAIN | ELEMENT | LOADED, target),
            "dense_step fp32 unaligned": compile_dense((F32,) * 3, ELEMENT, target, aligned=False),
            "dense_step all bf16": compile_dense((BF16, BF16, BF16), ELEMENT, target),
            "strided_step fp32": compile_kernel(strided_step, target, fp32 | some),
            "dense_squares fp32": compile_squares(F32, PLAIN | ELEMENT, True, target),
            "strided_squares fp32": compile_kernel(strided_squares, target, masked | some),
            "dense_dots fp32": compile_dots(F32, F32, target),
            "strided_dots fp32": compile_kernel(strided_dots, target, moments),
            "sum_chunks": compile_kernel(sum_chunks, target, {"MASKED": False}),
        }
        done[name] = [kernel for kernel, compiled in kernels.items() if compiled.asm[binary]]
    return done


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    steps, norms, amd = step_reports(), norm_reports(), amd_reports()
    dots = dots_reports()
    targets = compiles_everywhere()
    if args.json:
        found = {"triton": triton.__version__, "targets": targets}
        kinds = (("step", steps), ("norm", norms), ("dots", dots), ("amd", amd))
        for kernel, reports in kinds:
            found[kernel] = {name: asdict(one) for name, one in reports.items()}
        print(json.dumps(found))
        return
    print(f"dense_step, dense_squares, dense_dots for sm_90, Triton {triton.__version__}")
    print("| case | instructions per element | registers | stack | shared | accesses per turn |")
    print("|---|---|---|---|---|---|")
    for name, found in {**steps, **norms, **dots}.items():
        accesses = ", ".join(f"{count} x {what}" for what, count in sorted(found.wide.items()))
        print(
            f"| {name} | {found.per_element:.1f} | {found.registers} | {found.stack_bytes} "
            f"| {found.shared_bytes} | {accesses} |"
        )
    print(f"\ndense_step for gfx942, Triton {triton.__version__}")
    print("| case | instructions per element | registers | spills | LDS | accesses per turn |")
    print("|---|---|---|---|---|---|")
    for name, one in amd.items():
        accesses = ", ".join(f"{count} x {what}" for what, count in sorted(one.wide.items()))
        print(
            f"| {name} | {one.per_element:.1f} | {one.registers} | {one.spills} "
            f"| {one.lds_accesses} | {accesses} |"
        )
    for target, kernels in targets.items():
        print(f"{target}: {', '.join(kernels)}")


if __name__ == "__main__":
    main()
