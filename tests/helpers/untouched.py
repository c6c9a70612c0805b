"""Holding an optimizer to being what it was, after an error."""

import copy
from typing import Any

from helpers.small_runs import assert_same, make_optimizer, params_of, set_grads, snapshot, train
from torch.optim import Optimizer

from graddrop import FusedGradDropAdamW

SHAPES = ((5, 7), (4,))


def trained(**knobs: Any) -> FusedGradDropAdamW:
    """An optimizer that has made two steps and has new gradients."""
    optimizer = make_optimizer("auto", shapes=SHAPES, **knobs)
    optimizer.new_mask(0)
    train(optimizer, 2)
    set_grads(params_of(optimizer), 2)
    return optimizer


def groups_without_params(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Everything in the groups but the parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


class Untouched:
    """Holds an optimizer to being, afterwards, what it was: values, state, groups, counters."""

    def __init__(self, optimizer: FusedGradDropAdamW) -> None:
        self.optimizer = optimizer
        self.tensors = snapshot(optimizer)
        self.params = params_of(optimizer)
        self.groups = copy.deepcopy(groups_without_params(optimizer))
        self.draws = optimizer.draws
        self.twin = copy.deepcopy(optimizer)

    def check(self, **restored: Any) -> None:
        """Compare; ``restored`` is set in the groups first. Then go on as if nothing had been."""
        for group in self.optimizer.param_groups:
            group.update(restored)
        assert [id(p) for p in params_of(self.optimizer)] == [id(p) for p in self.params]
        assert_same(snapshot(self.optimizer), self.tensors)
        assert groups_without_params(self.optimizer) == self.groups
        assert self.optimizer.draws == self.draws
        for optimizer in (self.optimizer, self.twin):
            train(optimizer, range(2, 4))
        assert_same(snapshot(self.optimizer), snapshot(self.twin))
