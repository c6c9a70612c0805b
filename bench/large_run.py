"""Training steps of XLM-R Large at full size with random weights: does it fit, how fast is it.

    python -m bench.large_run --batch 1 --length 64 --json bench/results/xlmr-large-cpu.json

Builds the model with a classification head, trains it on random tokens, saves a checkpoint, loads
it into a new model, steps on. Prints what was predicted beside what was measured.
"""

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from bench.memory_model import Precision, predict
from bench.origin import origin
from graddrop import FusedGradDropAdamW

HEAD_WIDTH = 64
CLASSES = 3
GIB = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Make the run, print its record; return 0."""
    args = _arguments().parse_args(argv)
    device = torch.device(args.device)
    torch.manual_seed(0)
    before = _peak_bytes(device)
    model = _build(args, device)
    optimizer = _optimizer(model)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    predicted = predict(
        n_parameters,
        Precision(args.dtype),
        layers=args.layers,
        hidden=args.hidden,
        batch=args.batch,
        length=args.length,
        recompute=args.activation_checkpointing,
    )
    batch = _batch(args, device)
    steps = [_step(model, optimizer, batch, args.dtype) for _ in range(args.steps)]
    trained = _peak_bytes(device)
    record = {
        "what": vars(args) | {"folder": None, "json": None},
        "parameters": n_parameters,
        "tensors": sum(1 for _ in model.parameters()),
        "loss": [step.pop("loss") for step in steps],
        "seconds": _medians(steps),
        "seconds_of_each_step": steps,
        "predicted_bytes": predicted,
        "peak_bytes": {
            "before the model": before,
            "after training": trained,
            "of training": trained - before,
        },
    }
    whole = sum(record["seconds"].values())
    record["tokens_per_second"] = args.batch * args.length / whole
    record["optimizer_share"] = record["seconds"]["optimizer"] / whole
    if not args.no_checkpoint:
        record["checkpoint"] = _checkpoint(args, model, optimizer, batch, device)
        record["peak_bytes"]["with checkpoint"] = _peak_bytes(device)
    record |= origin(device)
    print(render(record))
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        choices=[precision.value for precision in Precision],
        default="fp32",
        help="of parameters; bf16-mixed keeps them in fp32 and computes in bf16, as the Trainer",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128, help="sub-words, at most 512")
    parser.add_argument("--steps", type=int, default=3, help="the first one is warm-up")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024, help=f"a multiple of {HEAD_WIDTH}")
    parser.add_argument("--vocabulary", type=int, default=250_002)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--no-checkpoint", action="store_true", help="save and load nothing")
    parser.add_argument("--folder", type=Path, help="where the checkpoint lies for a while")
    parser.add_argument("--json", type=Path, help="file for the record")
    return parser


def _build(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Make the model in the architecture of XLM-R (Conneau et al. 2020, arXiv 1911.02116)."""
    config = XLMRobertaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // HEAD_WIDTH,
        intermediate_size=4 * args.hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=CLASSES,
        use_cache=False,
    )
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    with device:
        model = XLMRobertaForSequenceClassification(config).to(dtype)
    if args.activation_checkpointing:
        # The method's name has changed between versions.
        name = "activation_checkpointing_enable"
        getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    return model.train()


def _optimizer(model: nn.Module) -> FusedGradDropAdamW:
    return FusedGradDropAdamW(model.named_parameters(), lr=1e-5, drop_prob=0.5, seed=0)


def _batch(args: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
    """Return random tokens, none of them special, and random labels."""
    shape = (args.batch, args.length)
    tokens = torch.randint(5, args.vocabulary, shape, device=device)
    labels = torch.randint(CLASSES, shape[:1], device=device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def _step(
    model: nn.Module, optimizer: FusedGradDropAdamW, batch: dict[str, Tensor], dtype: str
) -> dict[str, float]:
    """Make one training step; return its loss and the seconds of its parts."""
    device = batch["input_ids"].device
    seconds: dict[str, float] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        _wait(device)
        started = time.perf_counter()
        done = work()
        _wait(device)
        seconds[part] = time.perf_counter() - started
        return done

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16-mixed"):
            return model(**batch).loss

    loss = timed("forward", forward)
    timed("backward", loss.backward)
    timed("clipping", lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    timed("optimizer", optimizer.step)
    optimizer.zero_grad()
    return {"loss": loss.item(), **seconds}


def _medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each part; the first step sets up the moments and does not count."""
    counted = steps[1:] or steps
    return {part: statistics.median(step[part] for step in counted) for part in counted[0]}


def _checkpoint(
    args: argparse.Namespace,
    model: nn.Module,
    optimizer: FusedGradDropAdamW,
    batch: dict[str, Tensor],
    device: torch.device,
) -> dict[str, Any]:
    """Save, load into a new model and optimizer, step on.

    Raises:
        RuntimeError: If anything came back otherwise than it was saved.
    """
    saved_loss = _evaluate(model, batch)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "checkpoint.pt"
        started = time.perf_counter()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        save_seconds = time.perf_counter() - started
        n_bytes = path.stat().st_size
        started = time.perf_counter()
        # From the file page by page: memory need not hold the checkpoint beside what it fills.
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        _require_same(loaded, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        compare_seconds = time.perf_counter() - started
        # The caller's names still hold the old tensors: they give up their memory here.
        for parameter in model.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=device)
        optimizer.state.clear()
        gc.collect()
        started = time.perf_counter()
        model = _build(args, device)
        optimizer = _optimizer(model)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        load_seconds = time.perf_counter() - started
        del loaded
        if _evaluate(model, batch) != saved_loss:
            raise RuntimeError("the loaded model has another loss than the saved one")
        loss = _step(model, optimizer, batch, args.dtype)["loss"]
        if not math.isfinite(loss):
            raise RuntimeError(f"the step after loading has the loss {loss}")
    return {
        "bytes": n_bytes,
        "save_seconds": save_seconds,
        "compare_seconds": compare_seconds,
        "build_and_load_seconds": load_seconds,
        "loss_of_the_step_after": loss,
    }


def _require_same(loaded: Any, live: Any, place: str = "checkpoint") -> None:
    if isinstance(live, Tensor):
        same = loaded.dtype == live.dtype and torch.equal(loaded, live.detach().cpu())
    elif isinstance(live, dict):
        same = loaded.keys() == live.keys()
        for key in live if same else ():
            _require_same(loaded[key], live[key], f"{place}.{key}")
    elif isinstance(live, list | tuple):
        same = len(loaded) == len(live)
        for index, (ours, theirs) in enumerate(zip(loaded, live, strict=False)):
            _require_same(ours, theirs, f"{place}.{index}")
    else:
        same = loaded == live
    if not same:
        raise RuntimeError(f"{place} was loaded otherwise than it was saved")


def _evaluate(model: nn.Module, batch: dict[str, Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        loss = model(**batch).loss.item()
    model.train()
    return loss


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    """Return the most memory taken so far: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def render(record: dict[str, Any]) -> str:
    """Return the record as lines to read."""
    seconds = ", ".join(f"{part} {value:.3f}" for part, value in record["seconds"].items())
    predicted = ", ".join(f"{k} {v / GIB:.2f}" for k, v in record["predicted_bytes"].items())
    lines = [
        f"parameters            {record['parameters']:,} in {record['tensors']} tensors",
        f"seconds per step      {seconds}",
        f"tokens per second     {record['tokens_per_second']:.1f}",
        f"optimizer's share     {record['optimizer_share']:.1%} of a step",
        f"predicted GiB         {predicted}",
        f"measured GiB, peak    {record['peak_bytes']['of training'] / GIB:.2f} beyond the "
        f"{record['peak_bytes']['before the model'] / GIB:.2f} before the model",
    ]
    if "checkpoint" in record:
        saved = record["checkpoint"]
        lines += [
            f"checkpoint            {saved['bytes'] / GIB:.2f} GiB, saved in "
            f"{saved['save_seconds']:.0f} s, equal when read back, built and loaded in "
            f"{saved['build_and_load_seconds']:.0f} s",
            f"peak with checkpoint  {record['peak_bytes']['with checkpoint'] / GIB:.2f} GiB, "
            "pages of the file included",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
