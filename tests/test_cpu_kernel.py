"""Laws of the C++ kernel: the reference's step on every instruction set, thread count and cut.

Masks are compared bit for bit: under ``site="freeze"`` the first moment leaves zero exactly where
an entry is kept. Numbers are compared as updates against the step in float64, and bit for bit
wherever only the way of computing differs.
"""

import itertools
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graddrop import backends, testing
from graddrop.kernels import abi
from graddrop.kernels.cpu import binding
from graddrop.mask import Shard, keep_mask
from graddrop.testing import BF16, F16, F32, F64, FP32_ARITHMETIC, make_knobs, random_entry

pytestmark = pytest.mark.skipif(
    not binding.LIBRARY.exists() and shutil.which("c++") is None,
    reason="the CPU kernel is not built, and there is no C++ compiler to build it",
)

DTYPES = {name: dtypes for name, dtypes in testing.DTYPES.items() if binding.supports(*dtypes)} | {
    "fp32 with bf16 moments": (F32, F32, BF16),
    "bf16 with fp32 gradients": (BF16, F32, F32),
}
SITES = {
    "grad": {"site": "grad"},
    "update": {"site": "update"},
    "update, all decay": {"site": "update", "mask_decay": False},
    "freeze": {"site": "freeze"},
}
# 0, 1, both sides of a tile, an odd one of two tiles; matrices whose rows are and are not
# multiples of four, a vector of one-entry rows, a scalar
SHAPES = [(0,), (1,), (3,), (1023,), (1024,), (1025,), (2051,), (9, 20), (13, 7), (50, 1), ()]


@pytest.fixture(params=binding.ISAS)
def isa(request, monkeypatch):
    """Every instruction set that this machine runs."""
    return force_isa(request.param, monkeypatch)


def force_isa(name, monkeypatch):
    """Run the named instruction set, skip where the machine does not have it."""
    monkeypatch.setenv("GRADDROP_CPU_ISA", name)
    binding.load.cache_clear()
    try:
        binding.load()
    except RuntimeError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(autouse=True)
def _forget_what_was_forced():
    """Load anew after each test."""
    yield
    binding.load.cache_clear()
    binding.is_available.cache_clear()


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    """Fewer and more threads than there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def step(entries, knobs, counters=(0, 0)):
    """One step of the entries; returns the counters afterwards."""
    counters = torch.tensor(counters, dtype=torch.int64)
    executor = backends.make_executor("cpu", entries, knobs, torch.device("cpu"))
    executor.step(knobs, counters, None, None)
    return counters.tolist()


def entries_of(shapes, dtypes=DTYPES["fp32"], **options):
    """One random tensor of each shape, every stream and three layers among them."""
    return [
        random_entry(shape, dtypes, seed=i, stream_id=i, layer=i % 3, **options)
        for i, shape in enumerate(shapes)
    ]


def copied(entry):
    """The entry with its own copy of everything a step changes."""
    tensors = ("param", "exp_avg", "exp_avg_sq", "step")
    return replace(entry, **{name: getattr(entry, name).clone() for name in tensors})


def values(entry):
    """What a step changes, its counter aside."""
    return [entry.param, entry.exp_avg, entry.exp_avg_sq]


def assert_same_bits(entries, others):
    """Judge that pairs of entries agree in every bit."""
    for entry, other in zip(entries, others, strict=True):
        for a, b in zip(values(entry), values(other), strict=True):
            assert torch.equal(a, b)


def assert_step_is_the_reference(entries, knobs, counters=(0, 0)):
    """Step the entries, judge each one; ``knobs`` one per group."""
    befores = [testing.values_of(entry) for entry in entries]
    exact = [
        testing.exact_step(
            entry, knobs[entry.group], steps_finished=counters[0], masks_begun=counters[1]
        )
        for entry in entries
    ]
    steps = [entry.step.item() for entry in entries]
    assert step(entries, knobs, counters) == [counters[0] + 1, counters[1]]
    worst = [
        testing.excess_error(before, entry, ideal, knobs[entry.group], FP32_ARITHMETIC)
        for before, entry, ideal in zip(befores, entries, exact, strict=True)
    ]
    assert max(worst) <= 1, worst
    assert [entry.step.item() for entry in entries] == [n + 1 for n in steps]


# -- the step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_the_reference(fused, dtypes, site, granularity, monkeypatch):
    """Best and worst instruction set x dtype x site x granularity, a mix of sizes in one call."""
    if not fused:
        force_isa("baseline", monkeypatch)
    knobs = make_knobs(granularity=granularity, rescale=True, **SITES[site])
    assert_step_is_the_reference(entries_of(SHAPES, DTYPES[dtypes]), [knobs], counters=(5, 0))


@pytest.mark.parametrize("drop_prob", [0.0, 1.5 / 65536, 2.5 / 65536, 0.1, 0.5, 0.9, 1.0])
def test_every_drop_prob(drop_prob):
    """From exempt to everything dropped, halves of 1/65536 rounded to even."""
    for site, granularity in itertools.product(SITES, ["element", "row", "tensor"]):
        knobs = make_knobs(drop_prob=drop_prob, granularity=granularity, **SITES[site])
        assert_step_is_the_reference(entries_of([(1500,), (37, 3)]), [knobs])


def test_a_large_odd_tensor_is_the_reference(isa):
    """Many chunks, shared among the threads."""
    assert_step_is_the_reference(entries_of([(70_001,)]), [make_knobs()])


def test_maximize_and_zero_betas():
    """The sign of the gradient, and beta = 0."""
    knobs = make_knobs(maximize=True, beta1=0.0, beta2=0.0)
    assert_step_is_the_reference(entries_of([(1500,)]), [knobs])


def test_groups_keep_their_own_numbers():
    """Several groups, modes and dtypes in one step: each tensor has its own group's knobs."""
    knobs = [
        make_knobs(drop_prob=0.0, lr=1e-3),
        make_knobs(drop_prob=0.7, weight_decay=0.3, seed=5),
        make_knobs(drop_prob=0.5, site="freeze", granularity="row", beta1=0.5),
        make_knobs(drop_prob=0.5, site="update", granularity="tensor", period=0),
    ]
    entries = [
        random_entry(shape, dtypes, seed=i, stream_id=i, group=i % 4)
        for i, (dtypes, shape) in enumerate(
            itertools.product(DTYPES.values(), [(700,), (8, 12), (40_003,)])
        )
    ]
    assert_step_is_the_reference(entries, knobs, counters=(3, 2))


def test_the_judge_can_fail():
    """Control: a mask of the next draw, or a tenth of a percent in lr, is far outside."""
    for draw, lr in ((1, 1e-2), (0, 1.001e-2)):
        (entry,) = entries_of([(1300,)])
        before = testing.values_of(entry)
        exact = testing.exact_step(entry, make_knobs(lr=lr), steps_finished=draw)
        knobs = make_knobs()
        step([entry], [knobs])
        assert testing.excess_error(before, entry, exact, knobs, FP32_ARITHMETIC) > 10


# -- the masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_masks_are_the_contract_bit_for_bit(isa, granularity, dtypes):
    """What moves under freeze is exactly what graddrop.mask keeps."""
    entries = entries_of([(9001,), (33, 36), (33, 35), (5, 1000), (2000, 1)], DTYPES[dtypes])
    knobs = make_knobs(granularity=granularity, site="freeze")
    masks = drawn_masks(entries, knobs, counters=(7, 0))
    for entry, mask in zip(entries, masks, strict=True):
        expected = mask_of(entry, knobs, draw=7)
        assert torch.equal(mask, expected)
        assert not torch.equal(expected, expected.flip(0))  # control: the comparison can fail


def drawn_masks(entries, knobs, counters=(0, 0)):
    """The keep masks that the kernel draws, read from what moves under freeze."""
    assert knobs.site == "freeze"
    for entry in entries:
        entry.grad.fill_(1.0)
        entry.exp_avg.zero_()
    step(entries, [knobs], counters)
    return [entry.exp_avg != 0 for entry in entries]


def mask_of(entry, knobs, draw):
    """The keep mask by the contract."""
    return keep_mask(
        tuple(entry.param.shape),
        granularity=knobs.granularity,
        stream_id=entry.stream_id,
        layer=entry.layer,
        seed=knobs.seed,
        draw=draw,
        drop_prob=knobs.drop_prob,
        shard=entry.shard,
    )


@pytest.mark.parametrize(
    ("period", "counters", "draw"), [(1, (9, 4), 9), (4, (9, 4), 2), (0, (9, 2**32 - 1), 2**32 - 1)]
)
def test_the_draw_follows_the_period(period, counters, draw):
    """Steps finished, that // K, or masks begun by hand."""
    (entry,) = entries_of([(1200,)])
    knobs = make_knobs(period=period, site="freeze")
    (mask,) = drawn_masks([entry], knobs, counters)
    assert torch.equal(mask, mask_of(entry, knobs, draw))
    assert not torch.equal(mask, mask_of(entry, knobs, draw - 1))


@pytest.mark.parametrize("begin", [1, 500, 512, 1000, 2**31 - 500, 2**32 + 1, 2**42 - 700])
@pytest.mark.parametrize("dtypes", ["fp32", "all bf16"])
def test_a_shard_steps_as_part_of_the_whole(isa, begin, dtypes):
    """Any first element, beyond 2**31, 2**32 and call 2**32 of the generator too."""
    shard = Shard((2**43,), (begin,))
    for size in (1, 11, 1300):
        entry = random_entry((size,), DTYPES[dtypes], seed=0, shard=shard)
        knobs = make_knobs(site="freeze")
        assert_step_is_the_reference([entry], [knobs])
        (mask,) = drawn_masks([entry], knobs)
        assert torch.equal(mask, mask_of(entry, knobs, draw=0))


@pytest.mark.parametrize("site", SITES)
def test_what_is_dropped_stays_out(isa, site):
    """NaN and infinity in a dropped entry's gradient go nowhere; in a kept entry's they show."""
    for poison in (float("nan"), float("inf")):
        (entry,) = entries_of([(3000,)])
        knobs = make_knobs(**SITES[site])
        keep = mask_of(entry, knobs, draw=0)
        entry.grad[~keep] = poison
        first_kept = keep.nonzero()[0].item()
        entry.grad[first_kept] = poison
        step([entry], [knobs])
        expected = torch.zeros(3000, dtype=torch.bool)
        expected[first_kept] = True
        assert torch.equal(entry.param.isnan(), expected)
        if site in ("grad", "freeze"):
            assert torch.equal(entry.exp_avg.isfinite(), ~expected)


def test_a_frozen_tensor_stays_as_it_is():
    """A tensor that is dropped whole under freeze keeps its bits; its step is counted."""
    entries = entries_of([(2000,)] * 20)
    befores = [copied(entry) for entry in entries]
    knobs = make_knobs(granularity="tensor", site="freeze", drop_prob=0.5)
    step(entries, [knobs])
    dropped = [not mask_of(entry, knobs, draw=0).any() for entry in entries]
    assert 0 < sum(dropped) < 20
    for entry, before, is_dropped in zip(entries, befores, dropped, strict=True):
        assert torch.equal(entry.param, before.param) == is_dropped
        assert torch.equal(entry.exp_avg, before.exp_avg) == is_dropped
        assert entry.step.item() == before.step.item() + 1


# -- what must not matter --------------------------------------------------------------------------


def mixed_entries():
    """Tensors of all dtypes; the large ones make several chunks."""
    shapes = [(40_003,), (1,), (300, 128), (64, 33), (5,)]
    return [e for dtypes in DTYPES.values() for e in entries_of(shapes, dtypes)]


@pytest.mark.parametrize("site", SITES)
def test_thread_counts_give_the_same_bits(n_threads, site):
    """More threads, the same result; without OpenMP too."""
    knobs = [make_knobs(**SITES[site])]
    entries, others = mixed_entries(), mixed_entries()
    step(entries, knobs)
    torch.set_num_threads(1)
    step(others, knobs)
    assert_same_bits(entries, others)


def test_threads_of_its_own_give_the_same_bits(monkeypatch):
    """Where torch's OpenMP is not found, the kernel starts threads: the same result."""
    entries, others = mixed_entries(), mixed_entries()
    step(entries, [make_knobs()])
    alone = replace(binding.load(), gomp_parallel=None)
    monkeypatch.setattr(binding, "load", lambda: alone)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    step(others, [make_knobs()])
    monkeypatch.undo()
    assert_same_bits(entries, others)


@pytest.mark.parametrize("site", SITES)
def test_instruction_sets_with_fma_give_the_same_bits(site, monkeypatch):
    """AVX2 and AVX-512 round alike; the baseline, which cannot fuse, differs: the control."""
    results = {}
    for name in ("avx512", "avx2", "baseline"):
        force_isa(name, monkeypatch)
        results[name] = mixed_entries()
        step(results[name], [make_knobs(**SITES[site])])
    assert_same_bits(results["avx512"], results["avx2"])
    assert not torch.equal(results["avx2"][0].exp_avg, results["baseline"][0].exp_avg)


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_cutting_a_parameter_changes_no_bit(granularity, dtypes, dim):
    """Shards of either dimension, cut anywhere, end in the bits of the whole."""
    knobs = [make_knobs(granularity=granularity, site="freeze")]
    shape = (71, 130)
    whole = random_entry(shape, DTYPES[dtypes], seed=0)
    shards = []
    for begin, end in itertools.pairwise((0, 1, 8, 39, shape[dim])):
        offset = (begin, 0) if dim == 0 else (0, begin)
        cut = copied(
            replace(
                whole,
                shard=Shard(shape, offset),
                **{
                    name: getattr(whole, name).narrow(dim, begin, end - begin).contiguous()
                    for name in ("param", "grad", "exp_avg", "exp_avg_sq")
                },
            )
        )
        shards.append(cut)
    before = whole.param.clone()
    step([whole], knobs)
    step(shards, knobs)
    for index in range(3):
        joined = torch.cat([values(shard)[index] for shard in shards], dim=dim)
        assert torch.equal(joined, values(whole)[index])
    assert not torch.equal(whole.param, before)


def transposed(tensor):
    """Swap the first two dimensions in memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def channels_last(tensor):
    """Dimension 1 innermost in memory."""
    return tensor.contiguous(memory_format=torch.channels_last)


def every_second(tensor):
    """Gaps between entries."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def unaligned(tensor):
    """Begin one entry off the alignment."""
    flat = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return flat.view(tensor.shape).copy_(tensor)


def plain(tensor):
    """Contiguous."""
    return tensor.clone()


LAYOUTS = {
    "transposed": ((70, 45), (transposed,) * 3),
    "transposed gradient": ((70, 45), (plain, transposed, plain)),
    "transposed parameter": ((70, 45), (transposed, plain, plain)),
    "channels last": ((16, 4, 5, 7), (channels_last,) * 3),
    "channels last gradient": ((16, 4, 5, 7), (plain, channels_last, plain)),
    "every second entry": ((7, 500), (every_second, plain, plain)),
    "unaligned": ((3300,), (unaligned,) * 3),
    "unaligned gradient": ((3300,), (plain, unaligned, plain)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("granularity", ["element", "row"])
def test_any_layout_gives_the_same_bits(layout, dtypes, granularity):
    """Strides and alignment decide where an entry lies, never what becomes of it."""
    shape, (of_param, of_grad, of_moments) = LAYOUTS[layout]
    entry = random_entry(shape, DTYPES[dtypes], seed=0)
    relaid = replace(
        entry,
        param=of_param(entry.param),
        grad=of_grad(entry.grad),
        exp_avg=of_moments(entry.exp_avg),
        exp_avg_sq=of_moments(entry.exp_avg_sq),
        step=entry.step.clone(),
    )
    before = entry.param.clone()
    knobs = [make_knobs(granularity=granularity, site="freeze")]
    step([entry], knobs)
    step([relaid], knobs)
    assert_same_bits([entry], [relaid])
    assert not torch.equal(entry.param, before)


def test_an_exempt_group_is_plain_adamw():
    """drop_prob 0 gives the bits of a tensor that is not masked at all, whatever the knobs."""
    plain_entries = entries_of([(5000,)])
    step(plain_entries, [make_knobs(drop_prob=0.0)])
    # a probability that rounds to the threshold 0 goes through the masked modes
    for granularity, site in itertools.product(["element", "row", "tensor"], SITES):
        entries = entries_of([(5000,)])
        step(entries, [make_knobs(drop_prob=1e-9, granularity=granularity, **SITES[site])])
        assert_same_bits(entries, plain_entries)


# -- the process around it -------------------------------------------------------------------------

FORK = """
import os, signal, torch
from graddrop import testing
from graddrop.backends import make_executor
torch.set_num_threads(2)
def step():
    entry = testing.random_entry((200_000,), seed=0)
    knobs = [testing.make_knobs()]
    executor = make_executor("cpu", [entry], knobs, torch.device("cpu"))
    executor.step(knobs, torch.zeros(2, dtype=torch.int64), None, None)
    return entry.param
expected = step()
child = os.fork()
if child == 0:
    signal.alarm(20)
    torch.set_num_threads(1)  # torch's own operators would wait for threads that are gone
    torch.get_num_threads = lambda: 2
    os._exit(0 if torch.equal(step(), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks a threaded process")
def test_a_forked_process_can_step():
    """A child of a process that has stepped on several threads steps too, on one."""
    finished = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_step_brings_no_threads_of_its_own():
    """It runs on the threads that torch's operators have already."""
    if binding.load().gomp_parallel is None:
        pytest.skip("torch runs on another OpenMP than GNU's")
    threads = Path("/proc/self/task")
    large = torch.zeros(1 << 20)
    large.add_(1.0)  # torch starts its pool
    before = len(list(threads.iterdir()))
    step(entries_of([(200_000,)]), [make_knobs()])
    assert len(list(threads.iterdir())) == before


# -- the library -----------------------------------------------------------------------------------


def test_the_tables_have_the_same_columns_on_both_sides():
    """Each enumerator of abi.h has the value of the name in abi.py."""
    source = Path(binding.__file__).with_name("abi.h").read_text()
    names = re.findall(r"\b([A-Z][A-Z0-9_]+)\b", re.sub(r"//.*", "", source))
    shared = {name for name in names if hasattr(abi, name)}
    assert {"PARAM", "LAYOUT", "PERIOD", "MASKS_BEGUN", "N_SITES", "MAX_DIMS"} <= shared
    for body in re.findall(r"enum \w+ \{(.*?)\}", source, flags=re.DOTALL):
        value = -1
        for enumerator in filter(None, (part.strip() for part in body.split(","))):
            name, _, expression = (part.strip() for part in enumerator.partition("="))
            value = eval(expression, vars(abi).copy()) if expression else value + 1
            assert getattr(abi, name) == value, name


def test_a_missing_library_is_named_once(monkeypatch, tmp_path):
    """auto warns and takes the reference; the backend asked for by name refuses."""
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "nowhere.so")
    binding.load.cache_clear()
    binding.is_available.cache_clear()
    device = torch.device("cpu")
    with pytest.raises(RuntimeError, match="cannot be loaded.*make ext"):
        backends.resolve("cpu", device, DTYPES["fp32"])
    with pytest.warns(UserWarning, match="make ext"):
        assert backends.resolve("auto", device, DTYPES["fp32"]) == "reference"
    assert backends.resolve("auto", device, DTYPES["fp32"]) == "reference"  # and no second warning


def test_a_stale_library_is_refused(monkeypatch):
    """One that was built for other tables would read the wrong columns."""
    monkeypatch.setattr(abi, "N_TENSOR_COLUMNS", abi.N_TENSOR_COLUMNS + 1)
    binding.load.cache_clear()
    with pytest.raises(RuntimeError, match="stale.*make ext"):
        binding.load()


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    """The message names what this machine runs."""
    monkeypatch.setenv("GRADDROP_CPU_ISA", "avx1024")
    binding.load.cache_clear()
    with pytest.raises(RuntimeError, match="avx1024.*baseline"):
        binding.load()


@pytest.mark.parametrize("dtypes", [(F16, F16, F32), (F64, F64, F64), (F32, F32, F16)])
def test_other_dtypes_are_refused(dtypes):
    """auto leaves them to the reference, by name they are an error."""
    assert not binding.supports(*dtypes)
    assert backends.resolve("auto", torch.device("cpu"), dtypes) == "reference"
    with pytest.raises(RuntimeError, match="no code"):
        backends.resolve("cpu", torch.device("cpu"), dtypes)
