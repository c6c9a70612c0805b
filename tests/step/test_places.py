"""Laws of places: where in the whole parameter a process's part of it lies."""

import itertools

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from graddrop.step.sharding import place_of


@pytest.mark.parametrize("shards", [2, 3, 4])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_rows_that_do_not_divide_are_found(shards, parts):
    """FSDP2 over tensor parallelism: the rows that a process holds, for any number of them."""
    placements = (_StridedShard(0, split_factor=parts), Shard(0))
    for n_rows in range(1, 40):
        pieces = torch.arange(n_rows).chunk(parts)
        for part in range(parts):
            own = pieces[part].chunk(shards) if part < len(pieces) else ()
            for shard in range(shards):
                offset, size = place_of((n_rows, 3), placements, (shards, parts), (shard, part))
                rows = own[shard].tolist() if shard < len(own) else []
                assert list(range(offset[0], offset[0] + size[0])) == rows
                assert (offset[1], size[1]) == (0, 3)
                assert size[0] == len(rows) and offset[0] <= n_rows  # of what is empty, too


@pytest.mark.parametrize("n_rows", [1, 5, 6, 7, 11, 12, 13, 24, 59])
def test_strided_cuts_go_from_the_last_to_the_first(n_rows):
    """Two of them over a plain one: what comes last in the mesh cuts first."""
    placements = (_StridedShard(0, split_factor=6), _StridedShard(0, split_factor=2), Shard(0))
    mesh = (2, 3, 2)
    for coordinate in itertools.product(*map(range, mesh)):
        rows = torch.arange(n_rows)
        for part, parts in zip(reversed(coordinate), reversed(mesh), strict=True):
            pieces = rows.chunk(parts) if len(rows) else ()
            rows = pieces[part] if part < len(pieces) else rows[:0]
        (first, _), (size, _) = place_of((n_rows, 1), placements, mesh, coordinate)
        assert list(range(first, first + size)) == rows.tolist()


def test_each_dimension_has_its_own_cuts():
    """A mesh of replicas and of cuts of two dimensions."""
    placements = (Replicate(), Shard(1), Shard(0))
    assert place_of((5, 7), placements, (2, 3, 2), (1, 2, 1)) == ((3, 6), (2, 1))
    assert place_of((5, 7), placements, (2, 3, 2), (0, 2, 1)) == ((3, 6), (2, 1))  # another replica
    assert place_of((5, 7), placements, (2, 3, 2), (1, 0, 1)) == ((3, 0), (2, 3))
