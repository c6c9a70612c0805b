"""What a whole training step costs, and what ways to train less of a model save of it.

    python -m bench.whole_step --model FOLDER --device cuda
    python -m bench.whole_step --model decoder-7b --device cuda --apart

Forward pass, backward pass and optimizer's step, on a 12-layer encoder (FOLDER:
multilingual-e5-small, say, with a trimmed vocabulary; without one, random weights of that size) and
on a 12-layer decoder of the same width; or on one model of a named size, with random weights. All
ways have the same optimizer, but LoRA a second time with torch's. Layers that a mask drops cost no
backward pass (`skip_dropped`). One step of each way comes after the other, round after round,
unless the moments of all of them do not fit (`--apart`); a ratio is that of a round's times, the
table has medians and quartiles over rounds. Operations and bytes are counted, not timed.

Of the weights' products of the layers a third is the forward pass, a third the gradients of
activations, a third those of weights. With s their share of a standard step, which a profile gives,
and embeddings that are trained, dropping the share p of the layers saves at most p s / 3.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bench.origin import origin
from bench.sizes import SIZES
from bench.ways import Way, ways
from graddrop import FusedGradDropAdamW
from graddrop.categories import by_category
from graddrop.mask import layer_of
from graddrop.xglue.adapters import add_adapters

PRODUCTS = ("aten::addmm", "aten::mm")  # of weights; attention's own products are batched
# torch counts fused attention on GPUs alone.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}


@dataclass(frozen=True)
class Cost:
    """Of one way on one model.

    Attributes:
        model: encoder or decoder.
        way: its name.
        share: s, of the standard step's time.
        dropped: share of the layers' entries that a step drops as wholes, on average.
        seconds: median of a step.
        ratio: median over rounds of its time by that of standard; quartiles follow.
        low: first quartile.
        high: third quartile.
        operations: multiplications and additions of matrix products, mean over steps.
        parameters: bytes.
        gradients: bytes, the most of a step.
        moments: bytes, after all steps.
        saved: bytes that the forward pass keeps for the backward pass beside parameters, the most.
    """

    model: str
    way: str
    share: float
    dropped: float
    seconds: float
    ratio: float
    low: float
    high: float
    operations: float
    parameters: int
    gradients: int
    moments: int
    saved: int

    @property
    def bound(self) -> float:
        """What the ratio may be at best where layers are dropped and embeddings trained."""
        return 1 - self.dropped * self.share / 3


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


def bodies(model: str | None, size: Sequence[int | None], device: str) -> Iterator[tuple[str, Any]]:
    """Models with their names, one after the other.

    Args:
        model: one of `SIZES`, or a folder of an encoder, or None.
        size: layers, width and vocabulary, where they are to be other ones.
        device: where they are.
    """
    if model in SIZES:
        yield model, SIZES[model].scaled(*size).build(device)
        return
    if model:
        from transformers import AutoModel

        yield (
            "encoder",
            AutoModel.from_pretrained(model, add_pooling_layer=False, dtype=torch.float32),
        )
    else:
        yield "encoder", SIZES["encoder"].scaled(*size).build(device)
    yield "decoder", SIZES["decoder"].scaled(*size).build(device)


class Training:
    """One way to train a model, whose weights other ways share unless it has adapters."""

    def __init__(self, model: nn.Module, way: Way, n_layers: int) -> None:
        self.way = way
        if way.lora:
            model = copy.deepcopy(model)
            add_adapters(model, ("head.weight", "head.bias"))
            trained = {name for name, param in model.named_parameters() if param.requires_grad}
        else:
            trained, below = {"head.weight", "head.bias"}, -1
            for name, _ in model.named_parameters():  # in the order of the forward pass
                layer = layer_of(name)
                below = below if layer is None else layer
                if below >= round(way.lowest * n_layers) or way.lowest == 0:
                    trained.add(name)
        self.model = model
        named = [(name, param) for name, param in model.named_parameters() if name in trained]
        self.trained = [param for _, param in named]
        in_layers = [(n, p) for n, p in named if layer_of(n) is not None]
        others = [(n, p) for n, p in named if layer_of(n) is None]
        self._layered = sum(param.numel() for _, param in in_layers)
        groups = [{"params": in_layers}, {"params": others, "drop_prob": 0.0}]
        groups = [group for group in groups if group["params"]]
        if way.categories:
            self.want_gradients()  # categories are of what is trained
            groups = by_category(model, groups)
        # New masks at each step, so that the median is of many masks.
        knobs = dict(way.knobs) | ({"period": "step"} if way.masks else {})
        self.optimizer: Any = (
            torch.optim.AdamW(self.trained, lr=1e-6, fused=True)
            if way.fused
            else FusedGradDropAdamW(groups, lr=1e-6, **knobs)
        )

    def step(self, tokens: Tensor) -> None:
        """Forward, backward, the optimizer's step."""
        self.backward(tokens)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self, tokens: Tensor) -> None:
        """Forward and backward, with gradients for what this way trains."""
        with self.optimizer.skip_dropped() if self.way.masks else nullcontext():
            self.model(tokens).backward()

    def want_gradients(self) -> None:
        """Ask for gradients of what this way trains, as others may have asked for others."""
        self.model.requires_grad_(False)
        for param in self.trained:
            param.requires_grad_(True)

    def dropped(self) -> float:
        """The share of the layers' entries that the next step drops as wholes."""
        if not self.way.masks:
            return 0.0
        return sum(param.numel() for param in self.optimizer.dropped_params()) / self._layered

    def count(self, tokens: Tensor) -> tuple[int, int, int]:
        """Make a step; return its operations, the bytes of gradients and of what is saved."""
        own = {param.untyped_storage().data_ptr() for param in self.model.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
            saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            self.backward(tokens)
        gradients = sum(p.grad.nbytes for p in self.trained if p.grad is not None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return counter.get_total_flops(), gradients, sum(saved.values())

    def moments(self) -> int:
        """Bytes of the optimizer's moments."""
        states = self.optimizer.state.values()
        return sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))


def product_share(step: Callable[[], object], device: str, n_steps: int) -> float:
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
    chosen: Sequence[str],
    *,
    device: str,
    rounds: int,
    batch: Sequence[int],
    apart: bool = False,
    counted: int = 12,
) -> list[Cost]:
    """The costs of ways on one model.

    Args:
        name: of the model.
        body: the model, whose weights the ways share one after the other.
        chosen: names of ways; standard is always among them.
        device: where it runs.
        rounds: of one step of each way.
        batch: examples and tokens of each.
        apart: whether all rounds of a way come before those of the next, whose moments need the
            memory.
        counted: steps whose operations and bytes are counted.
    """
    model = Mean(body).to(device, body.dtype).train()
    n_layers = 1 + max(layer_of(n) or 0 for n, _ in model.named_parameters())
    tokens = torch.randint(body.config.vocab_size, tuple(batch), device=device)
    known = ways(n_layers)
    names = [way for way in known if way in ("standard", *chosen)]
    share = 0.0
    counts: dict[str, list[tuple[int, int, int]]] = {}
    moments: dict[str, int] = {}
    parameters: dict[str, int] = {}
    seconds: dict[str, list[float]] = {way: [] for way in names}
    dropped: dict[str, list[float]] = {way: [] for way in names}
    for together in [[way] for way in names] if apart else [names]:
        trainings = {way: Training(model, known[way], n_layers) for way in together}
        for way, training in trainings.items():
            training.want_gradients()
            # The first of them compile and make the state.
            counts[way] = [training.count(tokens) for _ in range(counted)]
            moments[way] = training.moments()
            parameters[way] = sum(param.nbytes for param in training.model.parameters())
        if "standard" in trainings:
            standard = trainings["standard"]
            standard.want_gradients()
            share = product_share(lambda step=standard.step: step(tokens), device, n_steps=2)
            del standard
        for _ in range(rounds):
            for way, training in trainings.items():
                training.want_gradients()
                dropped[way].append(training.dropped())
                wait(device)
                start = time.perf_counter()
                training.step(tokens)
                wait(device)
                seconds[way].append(time.perf_counter() - start)
        del trainings, training  # their moments make room for the next
    costs = []
    for way in names:
        pairs = zip(seconds[way], seconds["standard"], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        operations, gradients, saved = zip(*counts[way], strict=True)
        costs.append(
            Cost(
                model=name,
                way=way,
                share=share,
                dropped=statistics.mean(dropped[way]),
                seconds=statistics.median(seconds[way]),
                ratio=ratio,
                low=low,
                high=high,
                operations=statistics.mean(operations),
                parameters=parameters[way],
                gradients=max(gradients),
                moments=moments[way],
                saved=max(saved),
            )
        )
    return costs


def wait(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> list[Cost]:
    """Measure, print the table, write the record."""
    known = list(ways(12))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help=f"folder of the encoder, or {', '.join(SIZES)}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, nargs=2, help="default: the model's")
    for name in ("--layers", "--width", "--vocabulary"):
        parser.add_argument(name, type=int, help="of random weights; default: the model's")
    parser.add_argument("--ways", nargs="+", choices=known, default=known, help="LoRA needs peft")
    parser.add_argument("--apart", action="store_true", help="where memory holds one way's moments")
    parser.add_argument("--output", help="file for the record, JSON")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    size = args.layers, args.width, args.vocabulary
    costs = []
    batch = args.batch or SIZES.get(args.model, SIZES["encoder"]).batch
    for name, body in bodies(args.model, size, args.device):
        costs += measure(
            name,
            body,
            args.ways,
            device=args.device,
            rounds=args.rounds,
            batch=batch,
            apart=args.apart,
        )
    columns = ["model", "way", "dropped", "s/step", "ratio", "quartiles", "at best", "operations"]
    columns += ["gradients", "moments", "saved MB"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    standard: dict[str, Cost] = {}
    for cost in costs:
        base = standard.setdefault(cost.model, cost)
        print(
            f"| {cost.model} | {cost.way} | {cost.dropped:.2f} | {cost.seconds:.4f} | "
            f"{cost.ratio:.3f} | {cost.low:.3f} to {cost.high:.3f} | "
            f"{cost.bound if cost.dropped else float('nan'):.3f} | "
            f"{cost.operations / base.operations:.3f} | {cost.gradients / 2**20:.0f} | "
            f"{cost.moments / 2**20:.0f} | {cost.saved / 2**20:.0f} |"
        )
    print(f"Of a standard step, products of weights: {', '.join(_shares(costs))}")
    if args.output:
        record = {
            **origin(torch.device(args.device)),
            "batch": list(batch),
            "rounds": args.rounds,
            "costs": [asdict(cost) for cost in costs],
        }
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    return costs


def _shares(costs: Sequence[Cost]) -> list[str]:
    return [f"{c.share:.2f} ({c.model})" for c in costs if c.way == "standard"]


if __name__ == "__main__":
    main()
