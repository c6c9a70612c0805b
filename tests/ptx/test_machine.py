"""What the machine sees: accesses that no program may make, what orders threads, what is moved."""

import pytest
import torch
from ptx.machine import Code, Machine, Rules
from ptx.program import UnknownInstruction, parse
from ptx.races import Fault
from ptx.threads import Threads

HEAD = """
.version 8.7
.target sm_90a
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0
)
{
    .reg .pred %p<9>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<20>;
    ld.param.b64 %rd0, [kernel_param_0];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd2, %rd0, %rd1;
    cvt.u32.u64 %r3, %rd1;
"""
# Each thread's own address is %rd2, in shared memory %r3; its number %r0, its block's %r1.


def run(body, memory, n_blocks=1, block_size=64, order=None):
    """Run a kernel of one argument; it may access that tensor alone. Returns its counts."""
    code = Code(parse(HEAD + body + "\n    ret;\n}\n"), Rules(order=order))
    begin = memory.data_ptr()
    storages = [(begin, begin + memory.nbytes)]
    threads = Threads(code.program, n_blocks, block_size, [begin], 1024, storages)
    return Machine(code, threads).run()


def test_each_thread_has_its_own_address():
    """What the laws below start from: thread i of a block doubles entry i, and no one errs."""
    memory = torch.arange(64, dtype=torch.int32)
    run("ld.global.b32 %r4, [%rd2 + 0]; shl.b32 %r4, %r4, 1; st.global.b32 [%rd2], %r4;", memory)
    assert memory.tolist() == list(range(0, 128, 2))


def test_bytes_lie_low_in_wider_registers():
    """Loads put zeros above, stores and signs take the low bits, and each byte is checked."""
    memory = torch.full((64,), -1, dtype=torch.int32)
    memory.view(torch.uint8)[5] = 200
    run("ld.global.b8 %r4, [%rd0 + 5]; st.global.b32 [%rd2 + 64], %r4;", memory, block_size=32)
    assert memory[16:48].tolist() == [200] * 32
    swapped = """
        ld.global.b8 %r4, [%rd2 + 0];
        st.shared.b8 [%r3], %r4;
        bar.sync 0;
        xor.b32 %r5, %r3, 4;
        ld.shared.b8 %r6, [%r5];
        cvt.s32.s8 %r7, %r6;
        st.global.b8 [%rd2 + 0], 7;
        st.global.b32 [%rd2 + 128], %r7;"""
    memory = torch.arange(64, dtype=torch.int32) * 100 - 1
    run(swapped, memory, block_size=32)
    low = [(100 * (i ^ 1) - 1) % 256 for i in range(32)]
    assert memory[32:].tolist() == [byte - 256 if byte > 127 else byte for byte in low]
    assert memory[:32].tolist() == [(100 * i - 1) // 256 * 256 + 7 for i in range(32)]
    with pytest.raises(Fault, match="out-of-bounds load of 1 bytes"):
        run("ld.global.b8 %r4, [%rd0 + 256];", memory)


@pytest.mark.parametrize("offset", [-4, 4, 1 << 40])
@pytest.mark.parametrize("access", ["ld.global.b32 %r4, [{}];", "st.global.b32 [{}], %r0;"])
def test_outside_of_a_storage(access, offset):
    """One entry before the first, one after the last, or anywhere."""
    memory = torch.zeros(64, dtype=torch.int32)
    body = access.format(f"%rd2 + {offset}")
    with pytest.raises(Fault, match=r"out-of-bounds .* by thread \d+: (ld|st)[.]global[.]b32"):
        run(body, memory)


@pytest.mark.parametrize(
    "access", ["ld.global.b32 %r4, [%rd2 + 2];", "ld.global.v2.b32 {%r4, %r5}, [%rd2];"]
)
def test_a_misaligned_access(access):
    """A vector, too, must lie at a multiple of its whole size."""
    with pytest.raises(Fault, match="misaligned load of"):
        run(access, torch.zeros(100, dtype=torch.int32))


RACES = {
    "two threads write an entry": "st.global.b32 [%rd0], %r0;",
    "half an entry": "st.global.b32 [%rd2], %r0; st.global.b16 [%rd2 + 6], 0;",
    "one writes what another has read": """
        ld.global.b32 %r4, [%rd2 + 4];
        st.global.b32 [%rd2], %r4;""",
    "one reads what another has written": """
        st.global.b32 [%rd2], %r0;
        ld.global.b32 %r4, [%rd2 + 4];""",
    "one writes what all have read": """
        ld.global.b32 %r4, [%rd0];
        setp.eq.b32 %p0, %r0, 9;
        @%p0 st.global.b32 [%rd0], %r0;""",
    "shared memory": """
        st.shared.b32 [%r3], %r0;
        xor.b32 %r5, %r3, 4;
        ld.shared.b32 %r4, [%r5];""",
}


@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize("race", RACES)
def test_a_race(race, order):
    """Two threads, one address, one of them writes, in whichever order they run."""
    with pytest.raises(Fault, match=r"race: .* by thread \d+, .* by thread \d+: "):
        run(RACES[race], torch.zeros(100, dtype=torch.int32), order=order)


@pytest.mark.parametrize("order", [None, *range(5)])
def test_a_barrier_orders_a_block(order):
    """Through shared memory, each thread hands its number to another, 50 times over."""
    memory = torch.zeros(64, dtype=torch.int32)
    body = """
        mov.b32 %r6, 0;
        mov.b32 %r4, 0;
    $L_loop:
        add.s32 %r7, %r0, %r4;
        st.shared.b32 [%r3], %r7;
        bar.sync 0;
        xor.b32 %r5, %r3, 252;
        ld.shared.b32 %r4, [%r5];
        bar.sync 0;
        add.s32 %r6, %r6, 1;
        setp.lt.s32 %p0, %r6, 50;
        @%p0 bra $L_loop;
        st.global.b32 [%rd2], %r4;"""
    run(body, memory, order=order)
    assert memory.tolist() == [25 * 63] * 64
    for cut in (body.replace("bar.sync 0;", "", 1), body[::-1].replace(";0 cnys.rab", "", 1)[::-1]):
        with pytest.raises(Fault, match="race"):
            run(cut, memory, order=order)


def test_a_barrier_does_not_order_blocks():
    """What one block has written before its barrier, another may not read."""
    body = """
        setp.eq.b32 %p0, %r1, 0;
        @%p0 st.global.b32 [%rd2], %r0;
        bar.sync 0;
        @!%p0 ld.global.b32 %r4, [%rd2];"""
    with pytest.raises(Fault, match="race"):
        run(body, torch.zeros(64, dtype=torch.int32), n_blocks=2)


LAST_ARRIVES = """
        ld.global.b32 %r4, [%rd0 + 64];
        bar.sync 0;
        setp.eq.b32 %p0, %r0, 0;
        mov.b32 %r5, 0;
        @%p0 atom.global.gpu.acq_rel.add.u32 %r5, [%rd0 + 0], 1;
        setp.eq.b32 %p1, %r5, 2;
        @%p1 st.global.b32 [%rd0 + 64], 7;
        @%p1 st.global.b32 [%rd0], 0;"""


@pytest.mark.parametrize("order", [None, *range(5)])
def test_an_atomic_orders_blocks(order):
    """All blocks read, then say so; the last one writes: no race. Without the barrier there is."""
    memory = torch.zeros(64, dtype=torch.int32)
    run(LAST_ARRIVES, memory, n_blocks=3, order=order)
    assert memory[16] == 7 and memory[0] == 0
    hasty = LAST_ARRIVES.replace("bar.sync 0;", "")
    for cut in (hasty, LAST_ARRIVES.replace("%p1, %r5, 2", "%p1, %r5, 1")):
        with pytest.raises(Fault, match="race"):
            run(cut, torch.zeros(64, dtype=torch.int32), n_blocks=3, order=order)


def test_threads_part_and_meet_again():
    """A loop of as many turns as the thread's number; a table of branches; a shuffle of all."""
    memory = torch.zeros(64, dtype=torch.int32)
    body = """
        mov.b32 %r4, 0;
        mov.b32 %r5, 0;
    $L_loop:
        add.s32 %r4, %r4, %r5;
        add.s32 %r5, %r5, 1;
        setp.le.s32 %p0, %r5, %r0;
        @%p0 bra $L_loop;
        and.b32 %r6, %r0, 1;
    $L_table: .branchtargets
        $L_even,
        $L_odd;
        brx.idx %r6, $L_table;
    $L_odd:
        neg.s32 %r4, %r4;
    $L_even:
        shfl.sync.bfly.b32 %r7, %r4, 1, 31, -1;
        { .reg .b32 tmp; mov.b32 tmp, %r7; st.global.b32 [%rd2], tmp; }"""
    run(body, memory)
    sums = [sum(range(i + 1)) * (-1) ** i for i in range(64)]
    assert memory.tolist() == [sums[i ^ 1] for i in range(64)]


SECTORS = {  # of two warps; a thread's own address is a multiple of 4
    "ld.global.b32 %r4, [%rd2];": ("load 32", 8),
    "ld.global.b32 %r4, [%rd0];": ("load 32", 2),
    "shl.b64 %rd3, %rd1, 2; add.s64 %rd3, %rd3, %rd0; "
    "ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd3];": ("load 128", 32),
    "shl.b64 %rd3, %rd1, 3; add.s64 %rd3, %rd3, %rd0; st.global.b32 [%rd3], 1;": ("store 32", 64),
}


@pytest.mark.parametrize("body", SECTORS)
def test_sectors_of_a_request(body):
    """Two requests each: neighbours, one address, four at a time, one in every sector."""
    room = torch.zeros(64 * 8 + 8, dtype=torch.int32)
    memory = room[(-room.data_ptr() // 4) % 8 :]  # a sector's boundary
    counts = run(body, memory)
    access, sectors = SECTORS[body]
    assert counts.requests == {access: 2}
    assert counts.sectors == {access: sectors}
    assert counts.bytes_of(access.split()[0]) == 32 * sectors
    assert counts.instructions["ret"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "tanh.approx.f32 %r4, %r5",
        "add.f32 %r4, %r4, %r5",
        "ld.global.nc.b32 %r4, [%rd2]",
        "mov.b64 %rd4, %r4",
        "mov.u32 %r4, %clock",
        "shfl.sync.down.b32 %r4, %r4, 1, 31, -1",
        "atom.global.gpu.relaxed.add.u32 %r4, [%rd0], 1",
        "bar.warp.sync -1",
    ],
)
def test_an_unknown_instruction_stops_with_its_text(text):
    """Nothing is passed over."""
    with pytest.raises(UnknownInstruction) as raised:
        run(text + ";", torch.zeros(64, dtype=torch.int32))
    assert str(raised.value) == text


def test_what_was_not_written_is_garbage():
    """Registers and shared memory hold nothing that could pass for a result."""
    memory = torch.zeros(64, dtype=torch.int32)
    run("st.global.b32 [%rd2], %r9;", memory)
    assert set(memory.tolist()) == {0xA5A5A5A5 - 2**32}
    run("ld.shared.b32 %r4, [%r3]; st.global.b32 [%rd2], %r4;", memory.zero_())
    assert set(memory.tolist()) == {0xA5A5A5A5 - 2**32}
