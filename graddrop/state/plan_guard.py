"""Whether the last step's plan can make the next step too.

A plan holds addresses, shapes, strides and dtypes of parameters and state. If one of them has
changed, the plan would read and write in the wrong place. This is looked at before every step, so
tensors are compared a list at a time, by functions that loop in C.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from itertools import chain, compress
from operator import is_, itemgetter, not_

from torch import Tensor

from ..kernels.cpu.objects import Records
from ..step.knobs import ALIGNMENT, Knobs
from ..step.sharding import are_plain, local_tensors
from .checkpoint import STATE_KEYS, State
from .groups import LOADED_MASKS, Group

States = Mapping[Tensor, State]
_STATE = itemgetter(*STATE_KEYS)
_ALIGNMENT = itemgetter(ALIGNMENT)
_NAMES = itemgetter("stream_ids", "layers", LOADED_MASKS)


class PlanGuard:
    """Remembers what a plan was made for: groups, parameters, state and layouts of gradients.

    The gradients themselves are not kept, so that their memory is free between two steps.

    Args:
        groups: the optimizer's param groups.
        params: all of their parameters.
        grads: for each that takes part, a tensor laid out as its local gradient; None for the
            others. All are dense.
        state: the optimizer's; each parameter that takes part has all of its state.
        knobs: one per group.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: States,
        knobs: Sequence[Knobs],
    ) -> None:
        self._params = list(params)
        # Stream ids and layers are lists, which a user may edit: copies are kept. So is the list of
        # loaded masks, which comes anew with a state that is put into the groups by hand.
        self._names = [tuple(map(copy, _NAMES(group))) for group in groups]
        self._knobs, self._structure = knobs, _structure(knobs)
        self._planned = [grad is not None for grad in grads]
        self._unplanned = list(map(not_, self._planned))
        self._leaves_out = any(self._unplanned)
        self._moving = list(compress(params, self._planned))
        self._owners = list(state.values())  # dicts
        self._own = [state[param] for param in self._moving]
        self._with_alignment = [own for own in self._own if ALIGNMENT in own]
        self._held = self._hold()
        self._plain = are_plain(params)
        self._all_plain = self._plain and are_plain(self._held)
        self._places = Records(self._tensors())
        # torch refuses gradients of another shape or device, but not for tensor subclasses.
        self._layouts = Records([grad for grad in grads if grad is not None], may_move=True)

    def fits(
        self,
        groups: Sequence[Group],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: States,
        knobs: Sequence[Knobs],
    ) -> bool:
        """Whether the plan can make this step; arguments as for the constructor.

        Values may be others, gradients may lie elsewhere, and some may be missing. It is not enough
        that tensors are the same objects: assigning to ``.data`` gives a tensor other memory, or
        other strides or another dtype in its own.
        """
        try:
            held = self._hold()
            return (
                len(params) == len(self._params)
                and len(state) == len(self._owners)
                and all(map(is_, params, self._params))
                and are_plain(params) == self._plain  # classes may be swapped
                and all(map(is_, state.values(), self._owners))
                and all(map(is_, held, self._held))
                and list(map(_NAMES, groups)) == self._names
                and (knobs is self._knobs or _structure(knobs) == self._structure)
                and self._places.hold(None if self._all_plain else self._tensors())
                and self._takes(grads)
            )
        except KeyError:  # a part of the state is gone
            return False

    def _hold(self) -> list[Tensor]:
        """The state that the plan reads and writes."""
        held = list(chain.from_iterable(map(_STATE, self._own)))
        return held + list(map(_ALIGNMENT, self._with_alignment)) if self._with_alignment else held

    def _tensors(self) -> Sequence[Tensor]:
        """What the plan reads and writes beside gradients, as this process holds it."""
        tensors = [*self._moving, *self._held]
        return tensors if self._all_plain else local_tensors(tensors)

    def _takes(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether the plan takes these gradients, of which some may be missing."""
        if self._leaves_out:
            if any(grad is not None for grad in compress(grads, self._unplanned)):
                return False
            grads = list(compress(grads, self._planned))
        return self._layouts.hold(grads)


def _structure(knobs: Sequence[Knobs]) -> list[tuple[object, ...]]:
    """What the tables' modes depend on."""
    return [group_knobs.structure for group_knobs in knobs]
