"""The order in which a training set is read: batches at random, of examples of like length."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL = 32
"""Batches that are sorted together: more of them pad less, fewer of them mix better."""


def order_of_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> Iterator[int]:
    """Return the order of one epoch, a pure function of the arguments.

    The examples are shuffled and dealt into pools of `POOL` batches. Each pool is sorted by length
    and cut into batches, and all batches are shuffled. A rest that fills no batch comes last.

    Args:
        lengths: Sub-words of each example.
        batch_size: Examples per optimizer step, on all devices together.
        seed: In [0, 2**32).
        epoch: In [0, 2**32).

    Yields:
        Each index once.
    """
    # numpy hashes both numbers, a word each, into one state: no two pairs share an order.
    generator = np.random.default_rng((seed, epoch))
    shuffled = generator.permutation(len(lengths))
    n_whole = len(shuffled) - len(shuffled) % batch_size
    by_length = np.asarray(lengths)[shuffled]
    pool = np.arange(n_whole) // (POOL * batch_size)
    batches = shuffled[np.lexsort((by_length[:n_whole], pool))].reshape(-1, batch_size)
    yield from generator.permutation(batches).flatten().tolist()
    yield from shuffled[n_whole:].tolist()


class LengthSampler(Sampler[int]):
    """`order_of_epoch` as a sampler for a `DataLoader`.

    Args:
        lengths: Sub-words of each example.
        batch_size: Examples per optimizer step, on all devices together.
        seed: In [0, 2**32).
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return order_of_epoch(self._lengths, self._batch_size, self._seed, self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch whose order is given from now on."""
        self._epoch = epoch
