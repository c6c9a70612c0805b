"""What ways to train less of a model save on large models: computed, nothing is measured here.

    python -m bench.savings [--tflops 125] [--bandwidth 1.6]

Of a step of each way of `bench.whole_step`, its operations and bytes by formulas that are held to
what that command counts of small models (`tests/benchmarks/test_savings.py`). Seconds are
operations by a rate, and the bytes of the optimizer's step by a bandwidth; both are assumed.
`python -m bench.whole_step --model NAME --device cuda --apart` measures the same.

Of T tokens in inputs of L, a layer whose matrices have W entries takes 2 T W operations forward,
as many for the gradients of activations, as many for those of weights; attention 4 T L d forward
and 10 T L d backward (8 where the backward pass does not compute its scores again). A matrix that
gets no gradient saves the last third; a layer below all that is trained both parts of the backward
pass. Adapters of rank r take 6 T r for each row and column of a matrix. Means over masks, where a
mask is drawn: a step that drops less than that takes more.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.sizes import SIZES, Size
from bench.ways import Way, ways
from graddrop.xglue.adapters import RANK

MOMENTS = 8
"""Bytes per trained entry: two of float32."""

# 40 % of what NVIDIA states for an A100: 156 TFLOP/s in TF32, 312 in bf16; 80 % of its 2.0 TB/s.
TFLOPS = {torch.float32: 62.0, torch.bfloat16: 125.0}
BANDWIDTH = 1.6


@dataclass(frozen=True)
class Matrix:
    """Of a layer.

    Attributes:
        rows: entries of its result.
        columns: entries of its input.
        reads_input: whether that is the layer's own input, or nothing but its norm lies between.
    """

    rows: int
    columns: int
    reads_input: bool = False

    @property
    def entries(self) -> int:
        """Of the matrix, without a bias."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Kept:
    """What a layer keeps of each token for its backward pass, once per storage.

    Attributes:
        size: bytes.
        matrices: how many need it for their own gradient.
        norms: the same of norms. If there are neither, gradients of activations need it.
        of_input: whether it is for the gradient of the layer's input alone.
        category: matrices among which the share is dropped where categories drop their own.
    """

    size: float
    matrices: int = 0
    norms: int = 0
    of_input: bool = False
    category: int = 1

    def unneeded(self, drop: float) -> float:
        """How often all its matrices are among those that their category drops, a share of it."""
        each = (
            max(drop * self.category - i, 0) / (self.category - i) for i in range(self.matrices)
        )
        return math.prod(each)


@dataclass(frozen=True)
class Saving:
    """A step of one way, means over masks.

    Attributes:
        operations: multiplications and additions of matrix products.
        gradients: bytes.
        moments: bytes.
        saved: bytes that the forward pass keeps for the backward pass beside parameters.
        moved: bytes that the optimizer's step reads and writes.
    """

    operations: float
    gradients: float
    moments: float
    saved: float
    moved: float

    def seconds(self, tflops: float, bandwidth: float) -> float:
        """Of the step, products and the optimizer alone, at a rate and at TB/s."""
        return self.operations / (tflops * 1e12) + self.moved / (bandwidth * 1e12)


def matrices(size: Size) -> list[Matrix]:
    """The matrices of a layer: of attention, and of the feed-forward part."""
    d, f = size.width, size.feed_forward
    feed_forward = [Matrix(f, d)] * (2 if gated(size) else 1) + [Matrix(d, f)]
    return [Matrix(d, d, reads_input=True)] * 3 + [Matrix(d, d)] + feed_forward


def gated(size: Size) -> bool:
    """Whether it is a Llama, with a gate and norms before its parts; else XLM-R.

    Raises:
        ValueError: it is neither.
    """
    if size.kind not in ("encoder", "gated decoder"):
        raise ValueError(f"expected an encoder or a gated decoder, got a {size.kind}")
    return size.kind == "gated decoder"


def parameters(size: Size) -> tuple[int, int, int, int]:
    """Entries of the embeddings, of a layer, of a norm after all layers, of the head."""
    d = size.width
    entries = sum(matrix.entries for matrix in matrices(size))
    if gated(size):
        return size.vocabulary * d, entries + 2 * d, d, d + 1
    biases = sum(matrix.rows for matrix in matrices(size))
    return (size.vocabulary + size.positions + 3) * d, entries + biases + 4 * d, 0, d + 1


def kept_by_layer(size: Size, *, fused: bool, dropout: float) -> list[Kept]:
    """What a layer keeps per token.

    Args:
        size: of the model.
        fused: whether attention keeps its result and a number per head, not its scores.
        dropout: bytes of an entry of a mask of dropout; 0 without dropout.
    """
    d, f, b = size.width, size.feed_forward, size.dtype.itemsize
    scores = 3 * size.heads * size.batch[1] * b  # and their dropout, before and after
    attention = [Kept(3 * d * b)]  # query, key, value
    attention += (
        [Kept(d * b), Kept(4 * size.heads)] if fused else [Kept(scores), Kept(d * b, matrices=1)]
    )
    if gated(size):  # norms compute in float32: a copy of their input, a root, their output
        return [
            Kept(4 * d + 4, of_input=True),
            Kept(d * b, norms=1),
            Kept(d * b, matrices=3, category=4),
            *attention,
            Kept(4 * d + 4),
            Kept(d * b, norms=1),
            Kept(d * b, matrices=2, category=3 * size.layers),  # odd: of all layers together
            Kept(3 * f * b),  # the gate before and after its function, what it multiplies
            Kept(f * b, matrices=1),
        ]
    return [
        Kept(d * b, matrices=3, category=4),
        *attention,
        Kept(2 * (d * b + 8 + d * dropout)),  # input of each norm, its mean and deviation
        Kept(d * b, matrices=1),
        Kept(f * b),
        Kept(f * b, matrices=1),
    ]


def saving(size: Size, way: Way, *, fused: bool = True, dropout: float | None = None) -> Saving:
    """Compute a step.

    Args:
        size: of the model, and its batch.
        way: how much of it is trained.
        fused: whether attention is computed without keeping its scores, as on GPUs.
        dropout: bytes of an entry of a mask of dropout; None means 1 for an encoder, 0 for others.

    Returns:
        Its operations and bytes.

    Raises:
        ValueError: the kind of the model has no formula here.
    """
    dropout = (0 if gated(size) else 1) if dropout is None else dropout
    tokens, (examples, length) = size.batch[0] * size.batch[1], size.batch
    d, b = size.width, size.dtype.itemsize
    drop = way.knobs["drop_prob"] if way.masks else 0.0
    first = round(way.lowest * size.layers)
    bottom = way.lowest == 0 and not way.lora  # whether embeddings are trained

    layer = matrices(size)
    weights = sum(matrix.entries for matrix in layer)
    low_rank = RANK * sum(m.rows + m.columns for m in layer) if way.lora else 0
    attention = tokens * length * d
    operations = size.layers * (2 * tokens * (weights + low_rank) + 4 * attention)
    saved = 0.0
    trains_norms = not way.lora
    for index in range(first, size.layers):
        on = bottom or index > first  # whether the layer's input needs a gradient
        passed = 2 * tokens * (weights + low_rank)
        if not on and not (gated(size) and trains_norms):
            inputs = [m for m in layer if m.reads_input]
            passed -= 2 * tokens * sum(m.entries for m in inputs)
            passed -= 2 * tokens * RANK * sum(m.columns for m in inputs) if way.lora else 0
        own = low_rank if way.lora else weights * (1 - drop)
        operations += passed + 2 * tokens * own + (10 if fused else 8) * attention
        for kept in kept_by_layer(size, fused=fused, dropout=dropout):
            users = kept.matrices + (kept.norms if trains_norms else 0)
            share = float(on or not kept.of_input)
            if kept.matrices or kept.norms:
                together = way.categories and kept.matrices
                share = 1 - (kept.unneeded(drop) if together else drop) if users else 0.0
            saved += tokens * kept.size * share
        saved += tokens * RANK * b * len(layer) if way.lora else 0.0
    reached = first < size.layers
    operations += 2 * examples * d * (3 if reached else 2)  # the head
    saved += examples * d * b
    if bottom:  # words, and of an encoder positions, types, and a norm
        saved += 8 * tokens
        saved += 0 if gated(size) else tokens * (16 + d * b + 8 + d * dropout)
    if gated(size) and reached:  # the norm after all layers
        saved += tokens * (4 * d + 4 + (d * b if trains_norms else 0))

    embeddings, in_layer, norm, head = parameters(size)
    if way.lora:
        always, masked = size.layers * low_rank + head, 0
    else:
        always = head + (embeddings if bottom else 0) + (norm if reached else 0)
        masked = (size.layers - first) * in_layer
    step = 3 * b + 2 * MOMENTS  # reads all four, writes all but the gradient
    dropped_step = 0 if way.knobs.get("site") == "freeze" else step - b
    return Saving(
        operations=operations,
        gradients=b * (always + masked * (1 - drop)),
        moments=MOMENTS * (always + masked),
        saved=saved,
        moved=step * (always + masked * (1 - drop)) + dropped_step * masked * drop,
    )


def table(tflops: float | None = None, bandwidth: float = BANDWIDTH) -> str:
    """The savings of all ways on both large models, as Markdown.

    Args:
        tflops: rate of the products; None takes `TFLOPS`, by dtype.
        bandwidth: of the optimizer's step, in TB/s.
    """
    columns = ["computed, not measured", "step", "operations", "gradients GB", "moments GB"]
    lines = [f"| {' | '.join([*columns, 'saved GB'])} |", "|---" + "|--:" * len(columns) + "|"]
    for name in ("xlm-roberta-large", "decoder-7b"):
        size = SIZES[name]
        known = {n: way for n, way in ways(size.layers).items() if not way.fused}
        rate = tflops or TFLOPS[size.dtype]
        base = saving(size, known["standard"])
        for way, what in known.items():
            found = saving(size, what)
            ratio = found.seconds(rate, bandwidth) / base.seconds(rate, bandwidth)
            sizes = (found.gradients, found.moments, found.saved)
            lines.append(
                f"| {name}, {way} | {ratio:.2f} | {found.operations / base.operations:.2f} | "
                f"{' | '.join(f'{bytes_ / 1e9:.2f}' for bytes_ in sizes)} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tflops", type=float, help="rate of products; default: by dtype")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="TB/s")
    args = parser.parse_args(arguments)
    print(table(args.tflops, args.bandwidth))


if __name__ == "__main__":
    main()
