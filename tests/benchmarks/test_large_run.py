"""Laws of the full-size run: the model is XLM-R Large, and what is printed was measured."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra xglue")

from bench import hours, large_run
from bench.memory_model import Precision, predict
from bench.workloads import WORKLOADS
from graddrop.xglue.tasks import TASKS

SMALL = ("--device=cpu", "--layers=2", "--hidden=64", "--vocabulary=300", "--length=9", "--batch=3")
PARTS = ["forward", "backward", "clipping", "optimizer"]


@pytest.mark.parametrize("dtype", [precision.value for precision in Precision])
@pytest.mark.parametrize("extra", [[], ["--activation-checkpointing"]])
def test_a_small_run_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, extra: list[str]
) -> None:
    """It steps, saves, loads, steps on, leaves no checkpoint, and writes down where it ran."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = tmp_path / "record.json"
    places = ["--folder", str(scratch), "--json", str(file)]
    assert large_run.main([*SMALL, "--dtype", dtype, *extra, *places]) == 0
    record = json.loads(file.read_text())
    assert list(record["seconds"]) == PARTS
    whole = sum(record["seconds"].values())
    assert record["tokens_per_second"] == pytest.approx(27 / whole)
    assert record["optimizer_share"] == pytest.approx(record["seconds"]["optimizer"] / whole)
    stored = record["parameters"] * (2 if dtype == "bf16" else 4)
    assert record["predicted_bytes"]["parameters"] == stored
    # Value and two fp32 moments of each parameter, and the file's own structure.
    assert stored + 8 * record["parameters"] < record["checkpoint"]["bytes"]
    assert list(scratch.iterdir()) == []
    assert {"machine", "versions", "commit", "date"} <= record.keys()
    shown = capsys.readouterr().out
    assert f"{record['parameters']:,} in" in shown and "equal when read back" in shown


def test_full_size_is_that_of_xlm_r_large() -> None:
    """By default it is the encoder of the step benchmarks, with a head of three classes on top."""
    args = large_run._arguments().parse_args(["--device", "cpu"])
    model = large_run._build(args, torch.device("meta"))
    shapes = Counter(tuple(parameter.shape) for parameter in model.parameters())
    # The head's first layer is as large as the pooler that the encoder alone has.
    assert shapes == Counter([*WORKLOADS["xlmr-large"].shapes, (3, 1024), (3,)])


def test_memory_is_counted_by_hand() -> None:
    """Two layers of width 8, three sequences of five: 120 entries, 66 bytes each kept in fp32."""
    shape = {"layers": 2, "hidden": 8, "batch": 3, "length": 5}
    whole = predict(1000, Precision.FP32, recompute=False, **shape)
    assert whole == {
        "parameters": 4000,
        "gradients": 4000,
        "moments": 8000,
        "activations": 2 * 120 * (16 * 4 + 2),
        "total": 16000 + 15840,
    }
    half = predict(1000, Precision.BF16, recompute=True, **shape)
    assert half["activations"] == 2 * 120 * 2 + 120 * 34
    assert half["total"] == 12000 + half["activations"]
    mixed = predict(1000, Precision.BF16_MIXED, recompute=False, **shape)
    assert mixed["copies"] == 2 * 2 * 12 * 64
    assert mixed["total"] == 16000 + 2 * 120 * 34 + mixed["copies"]


def test_a_checkpoint_that_differs_is_seen() -> None:
    """One bit, another type, a missing key: each is named; what is equal passes."""
    live = {"state": [torch.arange(3.0), 7]}
    large_run._require_same({"state": [torch.arange(3.0), 7]}, live)
    for loaded in (
        {"state": [torch.tensor([0.0, 1.0, 2.0000002]), 7]},
        {"state": [torch.arange(3.0, dtype=torch.float64), 7]},
        {"state": [torch.arange(3.0), 8]},
        {"state": [torch.arange(3.0)]},
        {},
    ):
        with pytest.raises(RuntimeError, match="checkpoint.* otherwise than it was saved"):
            large_run._require_same(loaded, live)


def test_hours_are_counted_by_hand() -> None:
    """NC: 100,000 x 10 x 256 tokens, 6 x 12 x 8^2 operations each, at 1 TFLOP/s."""
    weights = hours.layer_weights(1, 8)
    assert weights == 768
    trained, evaluated = hours.operations("nc", weights)
    assert trained == 100_000 * 10 * 256 * 6 * 768
    assert evaluated == (100_000 + 10 * 10_000) * 256 * 2 * 768
    assert set(hours.EXAMPLES) == set(TASKS)
    row = hours.render(1e-6, 1, 8).splitlines()[4]
    assert row == f"| nc | 256 | {trained / 3.6e9:.2f} | {evaluated / 3.6e9:.2f} |"
