"""Parameters that need no gradient, since the step to come drops them as a whole."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..step.checks import is_capturing
from ..step.clipping import Clipping
from ..step.knobs import Knobs
from ..step.sharding import are_plain, local_tensor


def check_skippable(knobs: Sequence[Knobs], clipping: Clipping | None) -> None:
    """Check that a step reads no gradient of what it drops as a whole.

    Args:
        knobs: one per group.
        clipping: what the step clips at, None for nothing.

    Raises:
        ValueError: it reads them, for moments or for a norm.
        RuntimeError: a CUDA graph is being captured, whose replays would skip what this one does.
    """
    droppers = [group for group in knobs if group.drops_wholes]
    if any(group.site == "update" for group in droppers):
        raise ValueError(
            'skip_dropped expects site="grad" or "freeze", got "update": its moments need the '
            "gradients of what is dropped"
        )
    if droppers and clipping is not None and not clipping.masked:
        raise ValueError(
            "skip_dropped expects masked_norm=True, or max_grad_norm=None: the norm of all "
            "gradients needs those of what is dropped"
        )
    if droppers and is_capturing():
        raise RuntimeError(
            "expected no CUDA graph to be captured within skip_dropped: its replays would go on "
            "to other masks and skip the same parameters"
        )


class Skipping:
    """Takes ``requires_grad`` from dropped parameters for a while, and remembers which they were.

    What was skipped has to be what the step drops, so another mask in between is an error.
    """

    def __init__(self) -> None:
        self._depth = 0  # blocks that are open
        self._dropped: list[Tensor] = []  # by the mask that was skipped
        self._skipped: set[int] = set()  # ids of those of them that got no gradient
        self._begun_anew = False  # the gradients are gone, and may be of another mask next time
        self._settled: set[int] = set()  # ids of distributed parameters that have had a gradient

    @contextmanager
    def skip(self, params: Sequence[Tensor], dropped: Sequence[Tensor]) -> Iterator[None]:
        """Within it, the dropped parameters need no gradient.

        None is skipped if nothing else would need a gradient: backward then goes on to work.

        Args:
            params: all of the optimizer's.
            dropped: those that the next step drops as a whole.

        Raises:
            RuntimeError: gradients that are being accumulated were skipped under another mask.
        """
        self.check(dropped)
        ids = set(map(id, dropped))
        skipped = [param for param in dropped if param.requires_grad and self._may_skip(param)]
        if not any(param.requires_grad and id(param) not in ids for param in params):
            skipped = []
        self._dropped, self._begun_anew = list(dropped), False
        self._skipped.update(map(id, skipped))
        self._depth += 1
        try:
            for param in skipped:
                param.requires_grad_(False)
            yield
        finally:
            self._depth -= 1
            for param in skipped:
                param.requires_grad_(True)
            if not are_plain(params):
                self._settled.update(id(param) for param in params if param.grad is not None)

    def _may_skip(self, param: Tensor) -> bool:
        # FSDP2 looks, at its first forward pass, at the parameters that need a gradient to learn
        # in which dtype gradients are reduced: none may be hidden from it.
        return are_plain([param]) or id(param) in self._settled

    def __bool__(self) -> bool:
        """Whether gradients have been skipped since the last step."""
        return bool(self._dropped)

    def check(self, dropped: Sequence[Tensor]) -> None:
        """Check that a mask is the one that was skipped, if one was.

        Args:
            dropped: what the mask drops as a whole.

        Raises:
            RuntimeError: it is another.
        """
        if self._dropped and list(map(id, dropped)) != list(map(id, self._dropped)):
            if not self._begun_anew:
                raise RuntimeError(
                    "expected the mask whose gradients skip_dropped left out, got another: begin "
                    "masks, set knobs and load states before the backward pass, or begin it anew "
                    "after optimizer.zero_grad()"
                )
            self.forget()

    def fill(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the step, none of them missing that was skipped.

        What is dropped is selected away and may be anything: the parameter's own memory.
        """
        filled = list(grads)
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None and id(param) in self._skipped:
                filled[index] = local_tensor(param).detach()
        return filled

    def check_closed(self) -> None:
        """Check that no block is open.

        Raises:
            RuntimeError: one is; what it skips would be of this step's mask in the next, too.
        """
        if self._depth:
            raise RuntimeError("expected step() after the block of skip_dropped, got it within")

    def begin_anew(self) -> None:
        """The gradients are zero: another mask may be skipped next."""
        self._begun_anew = not self._depth

    def forget(self) -> None:
        """The step has been made."""
        self._dropped, self._skipped, self._begun_anew = [], set(), False
