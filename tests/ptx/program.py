"""PTX text, parsed: the instructions of one kernel, its registers, parameters and labels."""

import re
from dataclasses import dataclass, field

BITS = {"pred": 1, "b128": 128} | {
    f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64)
}  # PTX fundamental types

_STATEMENT = re.compile(r"\s*(?:(?P<label>[\w$]+):(?!:)|(?P<scope>[{}])|(?P<text>[^\s;{}][^;]*);)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^\s,]+")
_NAME = re.compile(r"[%\w$]+")


class UnknownInstruction(Exception):
    """The program holds something that is not known here; the message is its text."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        text: as it stands in the PTX.
        opcode: its parts between dots, as ("ld", "global", "v4", "b32").
        operands: as they stand, ``{...}`` and ``[...]`` whole.
        guard: predicate register that says which threads run it, None: all.
        negated: they are those where the predicate is false.
    """

    text: str
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None = None
    negated: bool = False


@dataclass
class Program:
    """One kernel.

    Attributes:
        name: of the entry.
        parameters: name -> type, in order.
        registers: name -> type.
        instructions: in order.
        labels: name -> index of the instruction that follows it.
        branch_targets: name of a table -> the labels in it.
        shared: names of arrays in shared memory.
    """

    name: str
    parameters: dict[str, str]
    shared: tuple[str, ...]
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)

    def bits_type(self, register: str) -> str:
        """The type of bits that a register holds: "pred", "b32", "b64"."""
        kind = self.registers[register]
        return kind if kind == "pred" else f"b{BITS[kind]}"


def parse(ptx: str) -> Program:
    """Parse the one entry of a PTX module.

    Raises:
        UnknownInstruction: there is no entry, or more than one, or text that is no statement.
    """
    text = re.sub(r"//[^\n]*", "", ptx)
    text = re.sub(r"^\s*\.(?:loc|file|pragma)\b.*$", "", text, flags=re.MULTILINE)
    entries = re.findall(
        r"\.entry\s+(\w+)\s*\((.*?)\)[^{]*\{(.*?)^\}", text, re.DOTALL | re.MULTILINE
    )
    if len(entries) != 1:
        raise UnknownInstruction(f"expected one .entry, found {len(entries)}")
    name, parameters, body = entries[0]
    program = Program(
        name=name,
        parameters={
            n: t for t, n in re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", parameters)
        },
        shared=tuple(re.findall(r"\.extern\s+\.shared[^;]*?(\w+)\s*\[", text)),
    )
    scopes: list[dict[str, str]] = [{}]  # names that a pair of braces has for itself
    position = 0
    while found := _STATEMENT.match(body, position):
        position = found.end()
        if found["label"]:
            program.labels[found["label"]] = len(program.instructions)
        elif found["scope"]:
            scopes.append({}) if found["scope"] == "{" else scopes.pop()
        else:
            _add_statement(program, " ".join(found["text"].split()), scopes)
    if body[position:].strip():
        raise UnknownInstruction(body[position:].strip().splitlines()[0])
    return program


def _add_statement(program: Program, text: str, scopes: list[dict[str, str]]) -> None:
    if text.startswith(".reg"):
        _, kind, names = text.split(None, 2)
        for name in names.split(","):
            _add_registers(program, kind.removeprefix("."), name.strip(), scopes)
        return
    if text.startswith(".branchtargets"):
        label = next(reversed(program.labels))  # it stands before the table
        program.branch_targets[label] = _NAME.findall(text.removeprefix(".branchtargets"))
        return
    inner = {name: unique for scope in scopes for name, unique in scope.items()}
    if inner:
        text = _NAME.sub(lambda name: inner.get(name[0], name[0]), text)
    parts = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text)
    if parts is None:
        raise UnknownInstruction(text)
    negation, guard, opcode, operands = parts.groups()
    program.instructions.append(
        Instruction(
            text=text,
            opcode=tuple(opcode.replace("::", ".").split(".")),
            operands=tuple(_OPERAND.findall(operands)),
            guard=guard,
            negated=negation == "!",
        )
    )


def _add_registers(program: Program, kind: str, name: str, scopes: list[dict[str, str]]) -> None:
    if kind not in BITS:
        raise UnknownInstruction(f".reg .{kind} {name}")
    several = re.fullmatch(r"([%\w$]+)<(\d+)>", name)
    if several:
        program.registers |= {f"{several[1]}{i}": kind for i in range(int(several[2]))}
        return
    if len(scopes) > 1:
        unique = f"%{name}_{len(program.registers)}"
        scopes[-1][name] = unique
        name = unique
    program.registers[name] = kind
