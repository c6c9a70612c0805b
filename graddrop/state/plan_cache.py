"""Which plan makes a step: the last one while its premises hold; each CUDA graph keeps its own."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from ..step.checks import is_capturing
from ..step.knobs import Knobs
from ..step.plan import Plan
from ..step.slot import Slot
from .groups import Group, check_names
from .partition_guard import WholeShapes
from .plan_guard import Premises
from .slots import slots_of

State = dict[str, Any]


class Planner:
    """The plans of one optimizer.

    Args:
        backend: the backend asked for.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._whole_shapes = WholeShapes()
        self._premises: Premises | None = None  # of the latest plan
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

        Raises:
            RuntimeError, TypeError, ValueError: as :func:`graddrop.state.groups.check_names`,
                :func:`graddrop.state.slots.slots_of` and :class:`graddrop.step.plan.Plan`, and
                where parameters have become partitions. Nothing has changed then.
        """
        capturing, premises = is_capturing(), self._premises
        if premises and not capturing and premises.hold(groups, params, grads, state, knobs):
            assert self.latest is not None
            return self.latest
        check_names(groups)
        slots, states = slots_of(groups, grads, state, initial_state)
        self._whole_shapes.check(groups)
        plan = Plan(params, slots, knobs, self._backend)
        state.update(states)
        if capturing:
            # A replay uploads tables again as they were: they are no step's but the graph's. They
            # live on, with all that they point at, since it may be replayed at any time.
            self._captured.append((plan, slots))
        else:
            like_grads = [None if slot is None else slot.grad for slot in slots]
            self.latest = plan
            self._premises = Premises(groups, params, like_grads, state, knobs)
        return plan

    def add(self, group: Group) -> None:
        """Plan with another group from the next step on."""
        self._whole_shapes.add(group)
        self.forget()

    def forget(self) -> None:
        """Make a new plan at the next step; graphs keep theirs."""
        self.latest = self._premises = None
