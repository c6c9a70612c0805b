"""What is stepped: the parameter shapes of the benchmarks."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """The parameters of one optimizer.

    Attributes:
        name: as the tables print it.
        shapes: of the parameters, in the order in which a model lists them.
    """

    name: str
    shapes: tuple[Shape, ...]

    @property
    def n_elements(self) -> int:
        """Entries of all parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def n_bytes(self) -> int:
        """What the measurement of a step takes of the memory, if the step makes moments alone.

        Parameters, gradients and the baseline's moments in fp32; then the most that a peer of ours
        has: parameters and gradients in bf16, a second set of these, and moments in fp32.
        """
        return (4 * (1 + 1 + 2) + 2 * (1 + 1 + 1) + 4 * 2) * self.n_elements


def _linear(n_out: int, n_in: int) -> Iterator[Shape]:
    yield (n_out, n_in)
    yield (n_out,)


def _layer_norm(hidden: int) -> Iterator[Shape]:
    yield (hidden,)
    yield (hidden,)


def _xlm_roberta(hidden: int, layers: int, intermediate: int) -> Iterator[Shape]:
    """Shapes of transformers' ``XLMRobertaModel`` (a test holds them against it)."""
    yield from ((250002, hidden), (1, hidden))  # words, token type
    yield from _layer_norm(hidden)
    yield (514, hidden)  # positions
    for _ in range(layers):
        for _ in ("query", "key", "value", "output"):
            yield from _linear(hidden, hidden)
        yield from _layer_norm(hidden)
        yield from _linear(intermediate, hidden)
        yield from _linear(hidden, intermediate)
        yield from _layer_norm(hidden)
    yield from _linear(hidden, hidden)  # pooler


def _llama(
    hidden: int, layers: int, intermediate: int, key_value: int, vocabulary: int
) -> Iterator[Shape]:
    """Shapes of transformers' ``LlamaModel`` (a test holds them against it)."""
    yield (vocabulary, hidden)
    for _ in range(layers):
        yield from ((hidden, hidden), (key_value, hidden), (key_value, hidden), (hidden, hidden))
        yield from ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
        yield from ((hidden,), (hidden,))  # norms
    yield (hidden,)


def _lora(rank: int, hidden: int, layers: int, intermediate: int) -> Iterator[Shape]:
    """Shapes of peft's LoRA on all linear maps of XLM-R's layers (a test holds them against it)."""
    square = (hidden, hidden)
    for _ in range(layers):
        for n_out, n_in in (*[square] * 4, (intermediate, hidden), (hidden, intermediate)):
            yield from ((rank, n_in), (n_out, rank))


def _small_tensors() -> Iterator[Shape]:
    sizes = random.Random(0)
    for _ in range(10_000):
        yield (sizes.randint(1, 4096),)


WORKLOADS = {
    "50m": Workload("one tensor of 50 M", ((50_000_000,),)),
    "xlmr-base": Workload("XLM-R Base", tuple(_xlm_roberta(768, 12, 3072))),
    "xlmr-large": Workload("XLM-R Large", tuple(_xlm_roberta(1024, 24, 4096))),
    "lora": Workload("LoRA of rank 64 on XLM-R Large", tuple(_lora(64, 1024, 24, 4096))),
    "llama-1b": Workload(
        "shapes of Llama 3.2 1B", tuple(_llama(2048, 16, 8192, key_value=512, vocabulary=128256))
    ),
    "huge": Workload("one tensor beyond 2^31", ((2**31 + 4099,),)),
    "10k": Workload("10,000 tensors of 1 to 4096", tuple(_small_tensors())),
}
