"""The compiled Triton kernels, executed without a GPU: a part of what `make kernels` runs."""

import os
import re
import subprocess
import sys

import pytest
from helpers.root import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

TRITON = "tests/kernels/test_triton.py"
CLIPPING = "tests/step/test_clipping.py"
ALIGNMENT = "tests/step/test_alignments.py"
CHOSEN = [
    "tests/kernels/executed",
    f"{TRITON}::test_a_step_is_the_reference[element-grad-fp32]",
    f"{TRITON}::test_found_inf_skips_the_step_on_the_device",
    f"{TRITON}::test_the_judge_can_fail",
    f"{CLIPPING}::test_a_masked_norm_is_of_what_enters_the_moments[triton-grad-element]",
    f"{ALIGNMENT}::test_it_is_the_published_definition[triton-False-tensor]",
    f"{ALIGNMENT}::test_products_of_any_shard[triton-127]",
    f"{ALIGNMENT}::test_products_of_any_layout[triton-bf16 with fp32 moments]",
    f"{ALIGNMENT}::test_a_norm_is_of_all_tensors[triton-True]",
]


def test_compiled_kernels_do_what_interpreted_ones_do():
    """Laws of the kernels on their code for sm_90, in a process that compiles them."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "ptx.plugin", "--execute", "sm_90", *CHOSEN],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": f"{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr
    print(run.stdout)
    executed = re.search(
        r"executed for sm_90: \{'launches': (\d+), 'instructions': (\d+)", run.stdout
    )
    assert executed is not None, run.stdout
    n_launches, n_instructions = map(int, executed.groups())
    assert n_launches > len(CHOSEN) and n_instructions > 1_000_000
