"""A grid of threads that executes PTX: all threads that are at one instruction at once, in numpy.

Threads that part run one group after the other, the one that is furthest behind first, so that they
meet again; or in random order.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from .approximate import LEANS
from .dtypes import Array
from .instructions import Step, step_of
from .memory import WARP, Counts, n_runs
from .program import Program, UnknownInstruction
from .races import Fault
from .threads import ALL, Threads

_JUMPS = {"bra", "brx", "ret", "exit", "bar", "barrier"}


@dataclass(frozen=True)
class Rules:
    """What PTX leaves open.

    Attributes:
        order: None: the threads furthest behind run first; else the seed of a random order of
            warps, which change after 1 to 40 instructions.
        lean: a name in ``approximate.LEANS``: how approximate instructions err.
    """

    order: int | None = None
    lean: str = "exact"


class Code:
    """A program, each instruction turned into a function.

    Raises:
        UnknownInstruction: for an instruction that is not known here, with its text.
    """

    def __init__(self, program: Program, rules: Rules) -> None:
        self.program = program
        self.rules = rules
        lean = LEANS[rules.lean]
        self.steps: list[Step | None] = []  # None: threads jump or wait
        for instruction in program.instructions:
            try:
                jumps = instruction.opcode[0] in _JUMPS
                self.steps.append(None if jumps else step_of(program, instruction, lean))
            except (LookupError, ValueError, TypeError) as error:
                raise UnknownInstruction(instruction.text) from error
        # Where a run of instructions that begins here ends: at a jump, or before a label.
        starts = set(program.labels.values())
        self.ends = [0] * len(self.steps)
        end = len(self.steps)
        for i in reversed(range(len(self.steps))):
            if self.steps[i] is None:
                end = i
            elif i + 1 in starts:
                end = i + 1
            self.ends[i] = end


class Machine:
    """One launch.

    Args:
        code: of the kernel.
        threads: of the launch, which are changed.
    """

    def __init__(self, code: Code, threads: Threads) -> None:
        self._code, self._threads = code, threads
        self._random = random.Random(code.rules.order)
        self._pending: dict[int, list[Array]] = defaultdict(list)  # instruction -> threads there
        self._waiting = np.full(len(threads.thread), -1)  # at a barrier: the instruction after it
        self._alive = np.bincount(threads.block)  # threads of each block
        self._runs: Counter[tuple[int, int]] = Counter()  # instructions [from, to) -> warps

    def run(self) -> Counts:
        """Run all threads to their end.

        Raises:
            Fault: an access that is misaligned, out of bounds or a race.
        """
        counts = self._threads.counts
        if len(self._threads.thread):
            self._pending[0].append(self._threads.thread)
        with np.errstate(all="ignore"):
            while self._pending:
                self._run_some()
        for (begin, end), warps in self._runs.items():
            for instruction in self._code.program.instructions[begin:end]:
                counts.instructions[".".join(instruction.opcode)] += warps
        return counts

    def _run_some(self) -> None:
        """Run a group of threads to the next jump or label."""
        at, thread = self._choose()
        lanes = ALL if len(thread) == len(self._threads.thread) else thread
        end = self._code.ends[at] if at < len(self._code.ends) else at
        if self._code.rules.order is not None:
            end = min(end, at + self._random.randint(1, 40))
        for step in self._code.steps[at:end]:
            step(self._threads, lanes)
        jumps = end < len(self._code.steps) and self._code.steps[end] is None
        self._runs[at, end + jumps] += n_runs(thread // WARP)
        if jumps:
            self._jump(end, thread)
        elif end < len(self._code.steps):
            self._pending[end].append(thread)
        else:
            self._leave(thread)

    def _choose(self) -> tuple[int, Array]:
        """The next instruction, and threads that are there."""
        if self._code.rules.order is None:
            at = min(self._pending)
        else:
            at = self._random.choice(list(self._pending))
        groups = self._pending.pop(at)
        thread = groups[0] if len(groups) == 1 else np.sort(np.concatenate(groups))
        if self._code.rules.order is None:
            return at, thread
        warps = np.unique(thread // WARP).tolist()
        some = self._random.sample(warps, self._random.randint(1, len(warps)))
        chosen = np.isin(thread // WARP, some)
        if not chosen.all():
            self._pending[at].append(thread[~chosen])
        return at, thread[chosen]

    def _jump(self, at: int, thread: Array) -> None:
        program, instruction = self._code.program, self._code.program.instructions[at]
        name = instruction.opcode[0]
        going = thread
        if instruction.guard is not None:
            taken = self._threads.registers[instruction.guard][thread] != instruction.negated
            going = thread[taken]
            if not taken.all():
                self._pending[at + 1].append(thread[~taken])
        if not len(going):
            return
        if name == "bra":
            self._pending[program.labels[instruction.operands[0]]].append(going)
        elif name == "brx":
            index, table = instruction.operands
            targets = program.branch_targets[table]
            chosen = self._threads.registers[index][going]
            if chosen.max() >= len(targets):
                raise Fault(f"{instruction.text}: {chosen.max()} of {len(targets)} targets")
            for i in np.unique(chosen):
                self._pending[program.labels[targets[i]]].append(going[chosen == i])
        elif name in ("ret", "exit"):
            self._leave(going)
        elif (*instruction.opcode, *instruction.operands) in (
            ("bar", "sync", "0"),
            ("barrier", "sync", "0"),
        ):
            self._waiting[going] = at + 1
            self._release()
        else:
            raise UnknownInstruction(instruction.text)

    def _leave(self, thread: Array) -> None:
        self._alive -= np.bincount(self._threads.block[thread], minlength=len(self._alive))
        self._release()

    def _release(self) -> None:
        """Let go the blocks whose threads have all met at a barrier."""
        waits = self._waiting >= 0
        arrived = np.bincount(self._threads.block[waits], minlength=len(self._alive))
        met = (arrived > 0) & (arrived == self._alive)
        if not met.any():
            return
        self._threads.order.at_barrier(np.nonzero(met)[0])
        going = np.nonzero(waits & met[self._threads.block])[0]
        for at in np.unique(self._waiting[going]):
            self._pending[int(at)].append(going[self._waiting[going] == at])
        self._waiting[going] = -1
