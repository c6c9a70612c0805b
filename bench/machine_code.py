"""What the machine code of a compiled kernel says: registers, spills, accesses of its main loop."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.compiler import CompiledKernel


@dataclass(frozen=True)
class Report:
    """What the sm_90 machine code of one kernel says.

    ``loop`` counts instructions of the loop over full tiles; ``per_element`` divides that by the
    elements that a thread moves per turn. ``wide`` are the widths in bits of its global accesses.
    ``flushing_roots`` counts roots that take subnormal numbers for 0.
    """

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    local_accesses: int
    shared_accesses: int
    flushing_roots: int
    loop: int
    per_element: float
    wide: dict[str, int]


@dataclass(frozen=True)
class AmdReport:
    """What the gfx942 machine code of one step kernel says, as :class:`Report`.

    ``spills`` are those to memory: of vector registers.
    """

    registers: int
    spills: int
    lds_accesses: int
    loop: int
    per_element: float
    wide: dict[str, int]


def amd_report(kernel: CompiledKernel, vector: int) -> AmdReport:
    """Read a step kernel's machine code.

    Args:
        kernel: compiled for gfx942.
        vector: neighbouring elements per thread in half a tile.
    """
    text = kernel.asm["amdgcn"]
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"^(\.LBB\d+_\d+):", line):
            labels[label.group(1)] = len(instructions)
        elif instruction := re.match(r"^\t([a-z][a-z0-9_]+\b.*?)(?:;.*)?$", line):
            instructions.append(instruction.group(1).strip())
    loops = []
    for end, instruction in enumerate(instructions):
        branch = re.match(r"s_(?:cbranch_\w+|branch)\s+(\.LBB\w+)", instruction)
        if branch and labels.get(branch.group(1), end + 1) <= end:
            loops.append(instructions[labels[branch.group(1)] : end + 1])
    # Bounds become masks of threads; loops over full chunks have none.
    full = [loop for loop in loops if not any("saveexec" in line for line in loop)]
    main = max(full, key=lambda loop: sum("dwordx" in line for line in loop))
    wide: dict[str, int] = {}
    for line in main:
        if access := re.match(r"(?:buffer|global)_(load|store)_(\w+)", line):
            key = " ".join(access.groups())
            wide[key] = wide.get(key, 0) + 1

    def usage(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        assert found is not None, name
        return int(found.group(1))

    return AmdReport(
        registers=usage("vgpr_count"),
        spills=usage("vgpr_spill_count"),
        lds_accesses=sum(line.startswith("ds_") for line in instructions),
        loop=len(main),
        per_element=len(main) / (2 * vector),
        wide=wide,
    )


def disassemble(kernel: CompiledKernel) -> tuple[list[str], dict[str, int], str]:
    """Instructions, index of each label, and the resource usage line."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        run = {"capture_output": True, "text": True, "check": True}
        sass = subprocess.run([tools / "nvdisasm", "-c", file.name], **run).stdout
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], **run)
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line.strip()):
            labels[label.group(1)] = len(instructions)
        elif instruction := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction.group(1))
    (resources,) = (line for line in (usage.stdout + usage.stderr).splitlines() if "REG:" in line)
    return instructions, labels, resources


def report(kernel: CompiledKernel, vector: int, operands: int = 4) -> Report:
    """Read a kernel's machine code.

    Args:
        kernel: compiled for an NVIDIA target.
        vector: neighbouring elements per thread in half a tile.
        operands: tensors that it loads.
    """
    instructions, labels, resources = disassemble(kernel)

    def usage(name: str) -> int:
        found = re.search(rf"{name}:(\d+)", resources)
        assert found is not None, resources
        return int(found.group(1))

    loops = []
    for end, instruction in enumerate(instructions):
        branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        if branch and labels[branch.group(1)] <= end:
            loops.append(instructions[labels[branch.group(1)] : end + 1])
    # Loops over full chunks load without a condition. With several modes in one kernel, the longest
    # of them counts.
    main = max(loops, key=lambda loop: (max(map(_unconditional_width, loop)), len(loop)))
    wide: dict[str, int] = {}
    for line in main:
        if width := _width(line):
            key = f"{'load' if 'LDG' in line else 'store'} {width}"
            wide[key] = wide.get(key, 0) + 1
    # The compiler may have made one turn of several tiles. A byte is of a loaded mask, no operand.
    operand = [access for access in wide if access.startswith("load") and access != "load 8"]
    loads = sum(wide[access] for access in operand)
    tiles = max(loads // (2 * operands), 1)
    return Report(
        registers=usage("REG"),
        stack_bytes=usage("STACK"),
        local_bytes=usage("LOCAL"),
        shared_bytes=usage("SHARED"),
        local_accesses=sum(bool(re.search(r"\b(LDL|STL)", line)) for line in instructions),
        shared_accesses=sum(bool(re.search(r"\b(LDS|STS|SHFL)", line)) for line in instructions),
        flushing_roots=kernel.asm["ptx"].count("sqrt.approx.ftz"),
        loop=len(main),
        per_element=len(main) / (2 * vector * tiles),
        wide=wide,
    )


def _width(instruction: str) -> int:
    """Bits that a global access moves per thread, 0 for any other instruction."""
    access = re.search(r"\b(?:LDG|STG)\.E(?:\.EF|\.EL|\.LU)?(?:\.(128|64|U16|U8))?", instruction)
    if access is None:
        return 0
    return {"128": 128, "64": 64, "U16": 16, "U8": 8, None: 32}[access.group(1)]


def _unconditional_width(instruction: str) -> int:
    return 0 if instruction.startswith("@") else _width(instruction)
