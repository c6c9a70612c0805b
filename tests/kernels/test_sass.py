"""What the Triton kernels promise without a clock: their machine code, compiled with no GPU.

The kernels are compiled in a process of their own, since here they may be interpreted.
"""

import json
import os
import subprocess
import sys

import pytest
from helpers.root import ROOT

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module")
def sass():
    """Reports of bench/sass.py."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "bench.sass", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_every_target_compiles(sass):
    """NVIDIA from Ampere to Blackwell, and AMD's of 64 and 32 lanes: the same ten kernels."""
    assert set(sass["targets"]) == {"sm_80", "sm_90", "sm_100", "gfx942", "gfx1100"}
    assert all(len(kernels) == 10 for kernels in sass["targets"].values())


def test_nothing_leaves_the_registers(sass):
    """No stack, no local memory, no spills, no shared memory, no shuffles, in any mode or dtype."""
    for name, report in sass["step"].items():
        for key in ("stack_bytes", "local_bytes", "shared_bytes"):
            assert report[key] == 0, (name, key)
        assert report["local_accesses"] == report["shared_accesses"] == 0, name


def test_64_registers_at_most(sass):
    """32 warps per multiprocessor; only a launch that mixes more than two modes may take more."""
    registers = {name: report["registers"] for name, report in sass["step"].items()}
    print(registers)
    assert all(n <= 64 for name, n in registers.items() if "four modes" not in name), registers


def test_the_main_loop_moves_128_bits_at_a_time(sass):
    """p, g, m, v in; p, m, v out; twice per tile. 64 bits for the 16-bit half of mixed dtypes."""
    wide = {"load 128": 8, "store 128": 6}
    mixed = {"load 128": 4, "load 64": 4, "store 128": 4, "store 64": 2}
    narrow = {"load 64": 8, "store 64": 6}
    for name, report in sass["step"].items():
        expected = wide
        if "fp32 moments" in name:
            expected = mixed
        elif name in (
            "all bf16, element mask, freeze",
            "all bf16, element mask, stochastic rounding",
            "all bf16, loaded mask, freeze",
        ):
            expected = narrow
        if "loaded mask" in name:  # a byte for each thread's neighbours
            expected = expected | {"load 8": 2}
        assert report["wide"] == expected, name


def test_randomness_costs_at_most_half_again_the_instructions(sass):
    """One Philox call feeds eight elements: the count per element is printed and bounded."""
    counts = {name: round(report["per_element"], 1) for name, report in sass["step"].items()}
    print(f"instructions per element, sm_90: {counts}")
    assert counts["fp32, no mask"] <= 22.6
    assert counts["fp32, element mask"] <= 34.8
    assert counts["fp32, element mask beside exempt tensors"] <= 34.8
    assert counts["fp32, row mask"] <= 36
    assert max(n for name, n in counts.items() if "stochastic" in name) <= 49
    for name, n in counts.items():  # what is read need not be drawn
        if "loaded mask" in name:
            assert n < counts[name.replace("loaded", "element")], name


def test_warps_of_64_lanes_hold_as_many_elements_per_lane(sass):
    """gfx942: as many lanes as sm_90, so wide accesses, nothing in LDS, and no more work."""
    for name, report in sass["amd"].items():
        assert {what.split()[1] for what in report["wide"]} <= {"dwordx4", "dwordx2"}, name
        assert report["spills"] == report["lds_accesses"] == 0, name
    counts = {name: round(report["per_element"], 1) for name, report in sass["amd"].items()}
    print(f"instructions per element, gfx942: {counts}")
    assert counts["fp32, element mask"] <= 40
    assert counts["fp32, row mask"] <= 60
    assert counts["bf16 with fp32 moments, element mask, stochastic rounding"] <= 66


def test_roots_of_tiny_second_moments_are_no_zeros(sass):
    """No root flushes subnormal numbers: the gradients behind them are below 1e-18, not 0."""
    assert all(report["flushing_roots"] == 0 for report in sass["step"].values())


def test_the_norm_reads_128_bits_at_a_time(sass):
    """Nothing spills, and there are 64 registers at most."""
    for name, report in sass["norm"].items():
        loaded = {"load 8"} if "loaded" in name else set()
        assert set(report["wide"]) == {"load 128"} | loaded, name
        assert report["stack_bytes"] == report["local_bytes"] == report["local_accesses"] == 0, name
        assert report["registers"] <= 64, name


def test_a_masked_norm_hides_behind_its_loads(sass):
    """At 13.5 instructions per bf16 entry, an H200 would issue as long as it reads."""
    counts = {name: round(report["per_element"], 1) for name, report in sass["norm"].items()}
    print(f"instructions per element, sm_90: {counts}")
    assert counts["fp32, norm of all"] <= 2
    assert counts["bf16, norm of what an element mask keeps"] <= 11
    assert counts["bf16, norm of what a loaded mask keeps"] <= 5


def test_products_with_moments_hide_behind_their_loads(sass):
    """In fp64, and yet wide loads, nothing spilled, and half the instructions that a step has."""
    wide = {
        "fp32, products": {"load 128": 4},
        "bf16 with fp32 moments, products": {"load 128": 2, "load 64": 2},
        "all bf16, products": {"load 64": 4},
    }
    assert {name: report["wide"] for name, report in sass["dots"].items()} == wide
    for name, report in sass["dots"].items():
        assert report["stack_bytes"] == report["local_bytes"] == report["local_accesses"] == 0, name
        assert report["registers"] <= 64, name
        assert report["per_element"] <= 7, name
