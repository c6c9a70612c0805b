"""Which tensors one launch of the Triton step serves, and how they are cut for its programs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import abi
from .decide import SOURCE_LONG_ROW
from .options import Dtypes, tiles_per_chunk
from .walk import BLOCK

# Of param, grad and moments; bf16 is rounded at random; steps are scaled by what products of
# gradients and first moments say.
Signature = tuple[torch.dtype, torch.dtype, torch.dtype, bool, bool]


@dataclass(frozen=True)
class Launch:
    """The tensors that one launch serves: those of one dtype signature and layout class.

    Attributes:
        dtypes: of param, grad and moments.
        stochastic: parameters are bfloat16 and rounded at random.
        dotted: products of gradients and first moments are asked for.
        strided: entries are located one by one.
        aligned: every origin is a multiple of 16 bytes; not looked at if ``strided``.
        tiles: per chunk; not looked at if ``strided``.
        chunks: int32 [n_chunks, 2]: row of the tensor table, chunk within the tensor.
        modes: bit m is set iff a tensor has mode m, see `long_rows_named`.
        rows: of the tensor table, in the order of the chunks.
        n_chunks: chunks per tensor, int64 [len(rows)].
    """

    dtypes: Dtypes
    stochastic: bool
    dotted: bool
    strided: bool
    aligned: bool
    tiles: int
    chunks: Tensor
    modes: int
    rows: Tensor
    n_chunks: Tensor


def plan_launches(
    tensor_table: Tensor,
    signatures: Sequence[Signature],
    aligned: Sequence[bool],
    processors: int,
) -> list[Launch]:
    """The launches of a step; tensors without entries are in none.

    Args:
        tensor_table: int64 [n_tensors, N_TENSOR_COLUMNS], on the CPU, of :func:`long_rows_named`.
        signatures: one per tensor.
        aligned: whether every origin of a tensor is a multiple of 16 bytes.
        processors: of the device.
    """
    members: dict[tuple[Signature, bool, bool], list[int]] = {}
    strided = (tensor_table[:, abi.LAYOUT] >= 0).tolist()
    for row, key in enumerate(zip(signatures, strided, aligned, strict=True)):
        # strided kernels load entry by entry, whatever the alignment
        members.setdefault((key[0], key[1], key[2] or key[1]), []).append(row)
    launches = []
    for (signature, is_strided, is_aligned), found in members.items():
        dtypes, (stochastic, dotted) = signature[:3], signature[3:]
        rows = torch.tensor(found, device="cpu")
        table = tensor_table[rows]
        begin, end = table[:, abi.BEGIN], table[:, abi.END]
        if is_strided:
            tiles = 0
            n_chunks = (end - begin + BLOCK - 1) // BLOCK
        else:
            n_tiles = ((end - 1) // abi.TILE - begin // abi.TILE + 1) * (end > begin)
            tiles = tiles_per_chunk(int(n_tiles.sum()), processors)
            n_chunks = (n_tiles + tiles - 1) // tiles
        total = int(n_chunks.sum())
        if total:
            before = (n_chunks.cumsum(0) - n_chunks).repeat_interleave(n_chunks)
            within = torch.arange(total, device="cpu") - before
            chunks = torch.stack((rows.repeat_interleave(n_chunks), within), dim=1).to(torch.int32)
            modes = sum(1 << mode for mode in set(table[:, abi.MODE].tolist()))
            layout = (is_strided, is_aligned, tiles)
            launch = Launch(dtypes, stochastic, dotted, *layout, chunks, modes, rows, n_chunks)
            launches.append(launch)
    return launches


def long_rows_named(tensor_table: Tensor) -> Tensor:
    """The table with a source of its own, SOURCE_LONG_ROW, where contiguous rows are that long."""
    source = tensor_table[:, abi.MODE] // abi.N_SITES
    is_long = (source == abi.SOURCE_ROW) & (tensor_table[:, abi.ROW_SIZE] % (abi.TILE // 4) == 0)
    is_long &= tensor_table[:, abi.LAYOUT] < 0
    named = tensor_table.clone()
    named[:, abi.MODE] += is_long * (SOURCE_LONG_ROW.value - abi.SOURCE_ROW) * abi.N_SITES
    return named
