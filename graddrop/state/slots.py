"""The tensors of a step, parameter by parameter: gradient, state, place in the masks, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ..step.alignment import initial_alignment
from ..step.checks import (
    check_alignment,
    check_grad,
    check_moments,
    check_param,
    is_capturing,
)
from ..step.knobs import ALIGNMENT
from ..step.sharding import local_tensor, shard_of
from ..step.slot import Slot
from .checkpoint import STATE_KEYS, State
from .groups import Group, place_in
from .loaded_masks import KEEP_MASK, LoadedMasks


def slots_of(
    groups: Sequence[Group],
    grads: Sequence[Tensor | None],
    state: Mapping[Tensor, State],
    initial_state: Callable[[Tensor, Group], State],
    loaded_masks: LoadedMasks,
) -> tuple[list[Slot | None], dict[Tensor, State]]:
    """The slots of a step, and the state that they hold. Nothing is changed.

    Args:
        groups: the optimizer's param groups.
        grads: local gradients of all their parameters in order, None where there is none.
        state: the optimizer's, by parameter.
        initial_state: makes the state of a parameter that has none yet.
        loaded_masks: of the parameters that have one.

    Returns:
        One slot per parameter, None where it has neither gradient nor state; the state of the
        others.

    Raises:
        RuntimeError: a gradient, a state or a mask that does not match its parameter; a saved mask
            in the state; a parameter without state while a CUDA graph is captured.
        TypeError: a parameter whose dtype has become one that cannot be stepped.
        ValueError: a parameter whose data have become such as cannot be stepped.
    """
    slots: list[Slot | None] = []
    states = {}
    for group_index, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            grad = grads[len(slots)]
            own = state.get(param, {})
            if KEEP_MASK in own:
                error = RuntimeError(
                    "expected a saved mask to come by load_state_dict, found it put into the state "
                    f'by hand, where no step reads it: take it out (pop("{KEEP_MASK}")) and give '
                    "it to load_masks, as bool"
                )
                error.add_note(place_in(group, index, group_index))
                raise error
            if grad is None and own.keys().isdisjoint(STATE_KEYS):
                slots.append(None)
                continue
            new = own.keys().isdisjoint(STATE_KEYS)  # others may keep theirs beside ours
            lacks_alignment = group["rescale"] == ALIGNMENT and ALIGNMENT not in own
            try:
                if new or lacks_alignment:
                    if is_capturing():
                        raise RuntimeError(
                            "expected state for each parameter with a gradient to capture step() "
                            "in a CUDA graph, whose replays would zero what is made now: make a "
                            "step with these gradients before the capture"
                        )
                    check_param(local_tensor(param))
                    own = {**own, **(initial_state(param, group) if new else {})}
                    if lacks_alignment:
                        own[ALIGNMENT] = initial_alignment(param)
                slot = _slot_of(param, grad, own, group, index, group_index)
                bits = loaded_masks.bits(param, slot.param, slot.shard)
                slots.append(slot if bits is None else replace(slot, keep_bits=bits))
            except (RuntimeError, TypeError, ValueError) as problem:
                problem.add_note(place_in(group, index, group_index))
                raise
            states[param] = own
    return slots, states


def _slot_of(
    param: Tensor, grad: Tensor | None, own: State, group: Group, index: int, group_index: int
) -> Slot:
    local = local_tensor(param)
    check_param(local)
    # Without a gradient, tables are made for one that is laid out as its parameter, as most are:
    # when such a one comes, they need not be made again.
    grad = local if grad is None else grad
    check_grad(local, grad)
    if missing := set(STATE_KEYS) - own.keys():
        raise RuntimeError(f"expected state {STATE_KEYS}; missing: {sorted(missing)}")
    slot = Slot(
        param=local,
        grad=grad,
        exp_avg=local_tensor(own["exp_avg"]),
        exp_avg_sq=local_tensor(own["exp_avg_sq"]),
        step=own["step"],
        stream_id=group["stream_ids"][index],
        layer=group["layers"][index],
        shard=shard_of(param),
        group=group_index,
        alignment=own[ALIGNMENT] if group["rescale"] == ALIGNMENT else None,
    )
    check_moments(local, slot.exp_avg, slot.exp_avg_sq, slot.step)
    if slot.alignment is not None:
        check_alignment(local, slot.alignment)
    return slot
