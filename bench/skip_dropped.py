"""What a whole training step costs when the backward pass of dropped layers is left out.

    python -m bench.skip_dropped --model FOLDER --device cuda

The arms are standard fine-tuning, Layer-GradDrop, LISA and HFT, all with the same optimizer, on a
12-layer encoder (FOLDER: multilingual-e5-small, say, with a trimmed vocabulary; without one, random
weights of that size) and on a 12-layer decoder of the same width. One step of each arm comes after
the other, round after round; a ratio is that of a round's times, the table has medians and
quartiles over rounds.

Of the weights' products of the layers a third is the forward pass, a third the gradients of
activations, a third those of weights. With s their share of a standard step, which a profile gives,
and embeddings that are trained, dropping the share p of the layers saves at most p s / 3.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from bench.origin import origin
from graddrop import FusedGradDropAdamW
from graddrop.mask import layer_of
from graddrop.methods import PRESETS

PRODUCTS = ("aten::addmm", "aten::mm")  # of weights; attention's own products are batched


@dataclass(frozen=True)
class Row:
    """One arm on one model.

    Attributes:
        model: encoder or decoder.
        method: what is trained.
        share: s, of the standard step's time.
        dropped: share of the layers, or of their tensors, that a step drops on average.
        seconds: median of a step.
        ratio: median over rounds of its time by that of standard; quartiles follow.
        low: first quartile.
        high: third quartile.
        bound: 1 - dropped * share / 3: what it may be at best.
    """

    model: str
    method: str
    share: float
    dropped: float
    seconds: float
    ratio: float
    low: float
    high: float
    bound: float


class Mean(nn.Module):
    """A body and a head of one number per example, whose mean square is the loss."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of a batch of tokens, int64 [batch, length]."""
        states = self.body(input_ids=tokens).last_hidden_state
        return self.head(states.mean(dim=1)).square().mean()


def encoder(folder: str | None, n_layers: int, width: int, vocabulary: int) -> Any:
    """The encoder without a pooler, which nothing here would train."""
    from transformers import AutoModel, BertConfig, BertModel

    if folder:
        return AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
    )
    return BertModel(config, add_pooling_layer=False)


def decoder(n_layers: int, width: int, vocabulary: int) -> Any:
    """A decoder of random weights."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=n_layers, n_head=max(1, width // 32)
    )
    return GPT2Model(config)


def arms(n_layers: int) -> dict[str, dict[str, Any]]:
    """The optimizer's masks, by method."""
    return {
        "standard": {"drop_prob": 0.0},
        "layer-graddrop": {"drop_prob": 0.5, **PRESETS["layer-graddrop"].knobs},
        "lisa": {"drop_prob": 1 - 2 / n_layers, **PRESETS["lisa"].knobs},
        "half-fine-tuning": {"drop_prob": 0.5, **PRESETS["half-fine-tuning"].knobs},
    }


def make_step(
    model: nn.Module, tokens: Tensor, knobs: dict[str, Any], device: str
) -> tuple[Callable[[], float], Callable[[], float]]:
    """A function that makes a step and returns its seconds, and one that says what it will drop."""
    in_layers = [(n, p) for n, p in model.named_parameters() if layer_of(n) is not None]
    others = [(n, p) for n, p in model.named_parameters() if layer_of(n) is None]
    # New masks at each step, so that the median is of many masks.
    knobs = knobs | ({"period": "step"} if "granularity" in knobs else {})
    optimizer = FusedGradDropAdamW(
        [{"params": in_layers}, {"params": others, "drop_prob": 0.0}], lr=1e-6, **knobs
    )
    masks = "granularity" in knobs
    size = sum(param.numel() for _, param in in_layers)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step() -> float:
        wait()
        start = time.perf_counter()
        with optimizer.skip_dropped() if masks else nullcontext():
            with record_function("forward"):
                loss = model(tokens)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        return time.perf_counter() - start

    def dropped() -> float:
        return sum(param.numel() for param in optimizer.dropped_params()) / size

    return step, dropped


def product_share(step: Callable[[], float], device: str, n_steps: int) -> float:
    """Share of a step's time that the products of weights take."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device == "cuda" else []
    with profile(activities=activities) as found:
        for _ in range(n_steps):
            step()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, name) for event in found.key_averages()}
    return sum(times.get(product, 0.0) for product in PRODUCTS) / sum(times.values())


def measure(
    name: str,
    body: Any,
    *,
    device: str,
    rounds: int,
    batch: Sequence[int],
) -> list[Row]:
    """The rows of one model.

    Args:
        name: of the model.
        body: the model, whose weights the arms share one after the other.
        device: where it runs.
        rounds: of one step of each arm.
        batch: examples and tokens of each.
    """
    model = Mean(body).to(device).train()
    n_layers = 1 + max(layer_of(n) or 0 for n, _ in model.named_parameters())
    tokens = torch.randint(body.config.vocab_size, tuple(batch), device=device)
    steps = {arm: make_step(model, tokens, knobs, device) for arm, knobs in arms(n_layers).items()}
    for step, _ in steps.values():
        step()  # compiles, makes the state
    share = product_share(steps["standard"][0], device, n_steps=2)
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    dropped: dict[str, list[float]] = {arm: [] for arm in steps}
    for _ in range(rounds):
        for arm, (step, find_dropped) in steps.items():
            dropped[arm].append(find_dropped())
            seconds[arm].append(step())
    rows = []
    for arm in steps:
        pairs = zip(seconds[arm], seconds["standard"], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        mean = statistics.mean(dropped[arm])
        median = statistics.median(seconds[arm])
        rows.append(Row(name, arm, share, mean, median, ratio, low, high, 1 - mean * share / 3))
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="folder of the encoder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 64))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--output", help="file for the record, JSON")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    size = args.layers, args.width, args.vocabulary
    rows = []
    for name, body in (("encoder", encoder(args.model, *size)), ("decoder", decoder(*size))):
        rows += measure(name, body, device=args.device, rounds=args.rounds, batch=args.batch)
    print("| model | method | dropped | s/step | ratio | quartiles | at best | products |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.model} | {row.method} | {row.dropped:.2f} | {row.seconds:.4f} | "
            f"{row.ratio:.3f} | {row.low:.3f} to {row.high:.3f} | {row.bound:.3f} | "
            f"{row.share:.2f} |"
        )
    if args.output:
        record = {
            **origin(torch.device(args.device)),
            "batch": list(args.batch),
            "rounds": args.rounds,
            "rows": [asdict(row) for row in rows],
        }
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    return rows


if __name__ == "__main__":
    main()
