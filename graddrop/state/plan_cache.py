"""The plans of an optimizer: the last one, used again while it fits, and one per CUDA graph."""

from collections.abc import Callable, MutableMapping, Sequence

from torch import Tensor

from ..step.checks import is_capturing
from ..step.knobs import Knobs
from ..step.plan import Plan
from ..step.slot import Slot
from .checkpoint import State
from .groups import Group, check_names
from .loaded_masks import LoadedMasks
from .partition_guard import WholeShapes
from .plan_guard import PlanGuard
from .slots import slots_of


class PlanCache:
    """Makes the plan of a step, or takes the last one where nothing that it rests on has changed.

    Args:
        backend: the backend asked for.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._whole_shapes = WholeShapes()
        self._guard: PlanGuard | None = None  # tells whether the latest plan still fits
        self._captured: list[tuple[Plan, Sequence[Slot | None]]] = []
        self.latest: Plan | None = None  # of the steps that are not captured

    def plan(
        self,
        groups: Sequence[Group],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: MutableMapping[Tensor, State],
        knobs: Sequence[Knobs],
        initial_state: Callable[[Tensor, Group], State],
        loaded_masks: LoadedMasks,
    ) -> Plan:
        """The plan of the step to come.

        Args:
            groups: the optimizer's param groups.
            params: all of their parameters.
            grads: their local gradients, None where there is none.
            state: the optimizer's; what a parameter lacks is added once all checks have passed.
            knobs: one per group.
            initial_state: makes the state of a parameter that has none yet. Not kept: it is a
                method of the optimizer, which would hold itself alive.
            loaded_masks: of the parameters that have one; :meth:`forget` when one comes or goes.

        Raises:
            RuntimeError, TypeError, ValueError: as :func:`graddrop.state.groups.check_names`,
                :func:`graddrop.state.slots.slots_of` and :class:`graddrop.step.plan.Plan`, and
                where parameters have become partitions. Nothing has changed then.
        """
        capturing, guard = is_capturing(), self._guard
        if guard and not capturing and guard.fits(groups, params, grads, state, knobs):
            assert self.latest is not None
            return self.latest
        check_names(groups)
        slots, states = slots_of(groups, grads, state, initial_state, loaded_masks)
        self._whole_shapes.check(groups)
        loaded_masks.check(groups)
        plan = Plan(params, slots, knobs, self._backend)
        state.update(states)
        if capturing:
            # Each replay of the graph uploads this plan's tables again. So no other step may change
            # them, and they are kept, with the tensors that they point at, for as long as we live.
            self._captured.append((plan, slots))
        else:
            like_grads = [None if slot is None else slot.grad for slot in slots]
            self.latest = plan
            self._guard = PlanGuard(groups, params, like_grads, state, knobs)
        return plan

    def add(self, group: Group) -> None:
        """Plan with another group from the next step on."""
        self._whole_shapes.add(group)
        self.forget()

    def forget(self) -> None:
        """Let the next step make a new plan; graphs keep theirs."""
        self.latest = self._guard = None
