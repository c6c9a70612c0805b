"""Masks that a user has loaded: checked, kept as bits beside the state, saved with it."""

import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from reprlib import repr as beginning  # of long lists
from typing import Any

import torch
from torch import Tensor

from ..mask import Shard
from ..step.keep_bits import KeepBits
from ..step.sharding import is_dtensor, local_tensor, shard_of
from ..step.totals import Total
from .groups import LOADED_MASKS, Group, place_in
from .users_line import users_line

KEEP_MASK = "keep_mask"  # a mask's key in the state of its parameter, in a state dict


@dataclass(frozen=True, slots=True)
class LoadedMask:
    """The mask of one parameter.

    Attributes:
        bits: those of the local tensor.
        n_kept: entries that it keeps, of the whole parameter.
    """

    bits: KeepBits
    n_kept: int


class LoadedMasks:
    """The masks of an optimizer's parameters that have one; the others' are drawn.

    They lie beside the optimizer's ``state``: tools take an optimizer whose state is not empty for
    one that has made its first step.
    """

    def __init__(self) -> None:
        self._masks: dict[Tensor, LoadedMask] = {}

    def __contains__(self, param: object) -> bool:
        """Whether a parameter has one."""
        return param in self._masks

    def keep_mask(self, param: Tensor) -> Tensor | None:
        """The mask of a parameter's local tensor, bool; None: it has none."""
        mask = self._masks.get(param)
        return None if mask is None else mask.bits.unpack()

    def n_kept(self, param: Tensor) -> int | None:
        """Entries that a parameter's mask keeps, of the whole parameter; None: it has none."""
        mask = self._masks.get(param)
        return None if mask is None else mask.n_kept

    def bits(self, param: Tensor, local: Tensor, shard: Shard) -> KeepBits | None:
        """What a step reads, None: the parameter has no mask.

        Memory that has come to be laid out otherwise since the mask was loaded is walked otherwise,
        and the bits are packed anew.

        Args:
            param: one of the optimizer's.
            local: its local tensor.
            shard: where that lies in the whole parameter.

        Raises:
            RuntimeError: the mask was loaded for another local shape, place or device.
        """
        mask = self._masks.get(param)
        if mask is None or mask.bits.fits(local, shard):
            return None if mask is None else mask.bits
        place = mask.bits.shape, mask.bits.begin, mask.bits.bits.device
        if place != (tuple(local.shape), shard.begin, local.device):
            raise RuntimeError(
                f"expected the local tensor that its mask was loaded for, of shape "
                f"{mask.bits.shape} on {mask.bits.bits.device}, got {tuple(local.shape)} on "
                f"{local.device}: call load_masks again"
            )
        bits = KeepBits.pack(mask.bits.unpack(), local, shard)
        self._masks[param] = replace(mask, bits=bits)
        return bits

    def check(self, groups: Sequence[Group]) -> None:
        """Check that every mask is still that of a parameter.

        Raises:
            RuntimeError: a parameter that has one is no longer among the groups, or a group names a
                mask that is not here.
        """
        if self._masks.keys() - {param for group in groups for param in group["params"]}:
            raise RuntimeError(
                "expected the parameters that masks were loaded for, got others in their place "
                "(accelerate puts DTensors there for FSDP2): call load_masks after that"
            )
        for index, group in enumerate(groups):
            listed = zip(group["params"], group[LOADED_MASKS], strict=False)
            if any(has and param not in self._masks for param, has in listed):
                raise RuntimeError(
                    f"expected the masks that {LOADED_MASKS} of param group {index} names, found "
                    "some missing: load states by load_state_dict, or call load_masks"
                )

    def prepare(self, masks: Mapping[Tensor, Tensor | None]) -> dict[Tensor, LoadedMask | None]:
        """Make what :meth:`put` takes; nothing is changed.

        Args:
            masks: by parameter, checked (:func:`check_mask`); None removes one.
        """
        return {
            param: None if keep is None else _made(param, keep) for param, keep in masks.items()
        }

    def put(self, prepared: Mapping[Tensor, LoadedMask | None], groups: Sequence[Group]) -> bool:
        """Set and remove masks, and say in the groups who has one.

        A mask takes the memory of the one that it replaces: a CUDA graph goes on to read it there.

        Returns:
            Whether a mask came, went or lies elsewhere, so that tables do not hold any more.
        """
        moved = False
        for param, mask in prepared.items():
            old = self._masks.get(param)
            if mask is None:
                moved |= self._masks.pop(param, None) is not None
            elif old is not None and old.bits.fits(local_tensor(param), shard_of(param)):
                old.bits.bits.copy_(mask.bits.bits)
                self._masks[param] = replace(old, n_kept=mask.n_kept)
            else:
                self._masks[param] = mask
                moved = True
        self.list_in(groups)
        return moved

    def list_in(self, groups: Sequence[Group]) -> None:
        """Say in the groups who has a mask."""
        for group in groups:
            group[LOADED_MASKS] = [param in self._masks for param in group["params"]]

    def beside(self, state: Mapping[Tensor, dict[str, Any]]) -> Mapping[Tensor, dict[str, Any]]:
        """The optimizer's state with each mask in it: bool, shape and placements of its parameter.

        Args:
            state: by parameter; not changed, and what is returned where there are no masks.
        """
        if not self._masks:
            return state
        joined = dict(state)
        for param, mask in self._masks.items():
            keep = torch.zeros_like(param, dtype=torch.bool, requires_grad=False)
            local_tensor(keep).copy_(mask.bits.unpack())
            joined[param] = {**joined.get(param, {}), KEEP_MASK: keep}
        return joined


def masks_by_param(
    groups: Sequence[Group], masks: Mapping[str | Tensor, Tensor | None]
) -> dict[Tensor, Tensor | None]:
    """The masks that a user gives, by parameter, all checked.

    Args:
        groups: the optimizer's param groups.
        masks: by name or parameter.

    Raises:
        TypeError: no mapping, keys of another type, or what is no bool tensor.
        ValueError: an unknown name or parameter, one that comes twice, or a mask of another shape.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(
            "expected masks as a mapping from names or parameters to bool tensors, got "
            f"{type(masks)}"
        )
    named = {
        name: param
        for group in groups
        for name, param in zip(group.get("param_names") or (), group["params"], strict=False)
    }
    params = {param for group in groups for param in group["params"]}
    found: dict[Tensor, Tensor | None] = {}
    for key, keep in masks.items():
        if isinstance(key, str):
            if key not in named:
                there = (
                    f"its names are {beginning(list(named))}"
                    if named
                    else "it has no names: make it of model.named_parameters()"
                )
                raise ValueError(
                    f"expected the name of one of the optimizer's parameters, got {key!r}; {there}"
                )
            param = named[key]
        elif isinstance(key, Tensor):
            if key not in params:
                raise ValueError(
                    "expected one of the optimizer's parameters, got a tensor of shape "
                    f"{tuple(key.shape)}"
                )
            param = key
        else:
            raise TypeError(f"expected a name or a parameter to load a mask for, got {key!r}")
        if param in found:
            raise ValueError("a parameter appears twice among the masks, by name and as a tensor")
        if keep is not None:
            try:
                check_mask(param, keep)
            except (TypeError, ValueError) as error:
                error.add_note(_place(groups, param))
                raise
        found[param] = keep
    return found


def masks_of_state(
    groups: Sequence[Group], state_dict: Mapping[str, Any], held: Container[Tensor] = ()
) -> dict[Tensor, Tensor | None]:
    """The masks in a state dict, by parameter, all checked; None: it says that there is none.

    A state that says nothing, as that of torch.optim.AdamW, leaves all as they are.

    Args:
        groups: those that are about to become the optimizer's, whose lists say who has one.
        state_dict: what is loaded; its groups list ids or the parameters themselves.
        held: parameters whose mask stays as it is where the groups name it and the state lacks it.

    Raises:
        ValueError: a mask that is missing, or of another shape.
        TypeError: a list that says something else, or what is no bool tensor.
    """
    found: dict[Tensor, Tensor | None] = {}
    for group_index, (group, saved) in enumerate(
        zip(groups, state_dict["param_groups"], strict=True)
    ):
        if LOADED_MASKS not in saved:
            continue
        listed = group[LOADED_MASKS]
        n_params = len(group["params"])
        if not isinstance(listed, Sequence) or {*map(type, listed)} - {bool}:
            raise TypeError(
                f"expected {LOADED_MASKS} of param group {group_index} as a list of bools, got "
                f"{beginning(listed)}"
            )
        if len(listed) != n_params:
            raise ValueError(
                f"expected {n_params} {LOADED_MASKS} in param group {group_index}, one per "
                f"parameter, got {len(listed)}"
            )
        for index, (param, param_id) in enumerate(
            zip(group["params"], saved["params"], strict=True)
        ):
            found[param] = None
            if not listed[index]:
                continue
            keep = state_dict["state"].get(param_id, {}).get(KEEP_MASK)
            if keep is None and param in held:
                del found[param]
                continue
            try:
                if keep is None:
                    raise ValueError(
                        "expected the mask that was loaded when this state was saved, which has "
                        f'it not in "{KEEP_MASK}": a distributed checkpoint reads what its reader '
                        "has, so call load_masks first, with any masks for these parameters"
                    )
                # torch.optim.AdamW, if the state has been there, took it for a number.
                if isinstance(keep, Tensor) and keep.is_floating_point():
                    keep = keep != 0
                check_mask(param, keep)
            except (TypeError, ValueError) as error:
                error.add_note(place_in(group, index, group_index))
                raise
            found[param] = keep
    return found


def check_mask(param: Tensor, keep: Any) -> None:
    """Check that a tensor can be the mask of a parameter.

    Raises:
        TypeError: no bool tensor.
        ValueError: another shape, no data, or a DTensor that the parameter's processes do not hold.
    """
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        found = f"dtype {keep.dtype}" if isinstance(keep, Tensor) else repr(type(keep))
        raise TypeError(f"expected a mask as a bool tensor, True where kept, or None, got {found}")
    if keep.shape != param.shape:
        raise ValueError(
            f"expected a mask of the whole parameter's shape {tuple(param.shape)}, got "
            f"{tuple(keep.shape)}"
        )
    if keep.is_meta or keep.layout != torch.strided:
        raise ValueError(f"expected a strided mask with data, got {keep.layout} on {keep.device}")
    if is_dtensor(keep):
        placed: Any = keep
        other: Any = param
        if (
            not is_dtensor(param)
            or placed.device_mesh != other.device_mesh
            or any(place.is_partial() for place in placed.placements)
        ):
            raise ValueError(
                "expected a mask as a plain tensor of the whole, or a DTensor on its parameter's "
                f"mesh, got one on {placed.device_mesh} with placements {placed.placements}"
            )


def warn_lost(prepared: Mapping[Tensor, object | None], masks: LoadedMasks) -> None:
    """Warn if :meth:`LoadedMasks.put` would remove masks for want of them in a loaded state."""
    if n_lost := sum(mask is None and param in masks for param, mask in prepared.items()):
        warnings.warn(
            f"the loaded state has no masks for {n_lost} parameters that have one here, and "
            "removes them: call load_masks after loading to keep them",
            stacklevel=users_line(),
        )


def _made(param: Tensor, keep: Tensor) -> LoadedMask:
    local, shard = local_tensor(param), shard_of(param)
    if is_dtensor(keep):
        placed: Any = keep
        like: Any = param
        if placed.placements != like.placements:
            placed = placed.redistribute(like.device_mesh, like.placements)
        part = local_tensor(placed)
        counts = part.count_nonzero().to(local.device).reshape(1)
        n_kept = int(Total([param], local.device)(counts))
    else:
        ends = zip(shard.offset, local.shape, strict=True)
        part = keep[tuple(slice(first, first + size) for first, size in ends)]
        n_kept = int(keep.count_nonzero())
    return LoadedMask(KeepBits.pack(part, local, shard), n_kept)


def _place(groups: Iterable[Group], param: Tensor) -> str:
    return next(
        place_in(group, index, group_index)
        for group_index, group in enumerate(groups)
        for index, candidate in enumerate(group["params"])
        if candidate is param
    )
