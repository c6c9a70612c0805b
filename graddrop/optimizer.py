"""``FusedGradDropAdamW``: AdamW with stochastically masked gradients, as a torch optimizer."""

from collections.abc import Callable
from reprlib import repr as beginning  # of long lists
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .optimizer_masks import MaskedOptimizer
from .schedules import Schedule
from .state.groups import (
    CONSTANTS,
    LOADED_MASKS,
    OF_ALL_GROUPS,
    check_listed,
    check_values,
    complete,
    make_plain,
)
from .state.skipping import check_skippable
from .step.backends import BACKENDS
from .step.checks import DTYPES, check_capture, check_param
from .step.clipping import clipping_of
from .step.overlap import check_disjoint
from .step.sharding import local_grads, local_tensor, shard_of

# Where arguments of the whole optimizer are kept, unless under their own names.
_ATTRIBUTES = {"state_dtype": "_state_dtype", "backend": "_backend"}


class FusedGradDropAdamW(MaskedOptimizer):
    """AdamW (Loshchilov & Hutter 2019) whose gradients, or updates, are stochastically masked.

    A drop-in for ``torch.optim.AdamW``: masking and update are one pass over memory. At
    ``drop_prob=0`` it is AdamW. Masks are a pure function of (seed, draw, parameter, element): the
    same bits on every backend, after resume, and for DTensors of any sharding (``graddrop.mask``).

    Every argument from ``lr`` to ``seed``, and ``maximize`` and ``capturable``, may differ per
    param group. A group may also carry ``stream_ids`` (a list of ints in [0, 2**30), one per
    parameter: its id in the masks; default: its position in the optimizer) and ``layers`` (an int
    for the whole group, or a list of ints or None per parameter; default: what the parameters'
    names say, as ``"encoder.layer.3.attention"`` says 3).

    Attributes:
        max_grad_norm, masked_norm, norm_group: as in Args; may be changed between steps.
        grad_norm: norm that the last step found before clipping, loss scale taken out: 0-dim, on
            the device; None where ``max_grad_norm`` is.

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, as in ``torch.optim.AdamW``, whose
    state dicts load here and which loads ours; under ``rescale="alignment"`` an ``alignment`` too.

    Args:
        params: tensors, param groups, or ``model.named_parameters()`` (names give the layers).
        lr: learning rate, >= 0; a float, or a tensor of one element that is read on the device.
        betas: decay of the first and second moment, each in [0, 1); floats, or both as tensors of
            one element on the CPU.
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        drop_prob: probability in [0, 1] that an entry is dropped; or a schedule, a callable of the
            number of finished steps (``graddrop.schedules``), in force until a group's
            ``drop_prob`` is set to another value; or a tensor of one element, read on the device. A
            group with ``drop_prob=0`` is exempt. With a ``GradScaler`` a schedule waits for the
            device, which alone knows which steps were skipped; a tensor does not.
        granularity: what shares one decision: ``"element"``, ``"row"`` (dimension 0),
            ``"tensor"`` or ``"layer"`` (parameters in no layer are kept).
        select: which tensors or layers are dropped: ``"bernoulli"`` (each by its own chance),
            ``"exact"`` (so many, at random) or so many in turns, one mask after the other:
            ``"ascending"``, ``"descending"`` (by layer or stream id) or ``"shuffled"`` (in an order
            drawn anew for each round). Of n units ``round(n drop_prob)`` are dropped, so
            ``1 - 2 / 12`` keeps 2 of 12. Groups that agree in granularity, select, drop_prob,
            period and seed are counted together. See :func:`graddrop.mask.keep_units`.
        period: how long a mask lives: ``"step"``, an int K >= 1 (K steps), ``"epoch"`` (until
            :meth:`new_mask` is called) or ``"run"`` (one draw for the whole training: where
            ``drop_prob`` falls, what was kept stays kept).
        site: where the mask acts: ``"grad"`` (masked gradients enter the moments), ``"update"``
            (dense moments; the parameter moves only where kept) or ``"freeze"`` (where dropped
            nothing changes, moments included; a tensor that one decision drops keeps its ``step``).
        rescale: scale what is kept by 1 / (realised keep probability); or ``"alignment"``, under
            ``site="update"``: by how well the gradients of a tensor agree with its first moment,
            see :func:`graddrop.reference.next_alignment`. A step then reads both once more.
        mask_decay: under ``site="update"``, whether weight decay too acts only where kept.
        stochastic_rounding: round bfloat16 parameters at random, on average to the exact value, so
            that steps smaller than their precision add up; other dtypes as always.
        seed: of the masks and the rounding, in [0, 2**64); not torch's, which is not read.
        maximize: ascend instead of descend.
        capturable: allow the step to be captured in a CUDA graph.
        amsgrad, foreach, differentiable: of ``torch.optim.AdamW``; at their defaults only.
        fused: False: loss scales are taken out of the gradients before the step, as with
            ``AdamW(fused=False)`` (Lightning's ``gradient_clip_val`` under mixed precision wants
            it); otherwise within it, and a ``GradScaler`` does not wait for the device.
        max_grad_norm: bound > 0 of the norm of all gradients together, applied within the step:
            memory keeps the gradients as they are. The norm is then :attr:`grad_norm`.
            ``math.inf`` measures and does not clip. None: no norm is looked at.
        masked_norm: bound the norm of the gradients as they enter the moments, without what the
            masks drop, instead of that of all gradients. Without ``max_grad_norm`` it does nothing.
        norm_group: process group whose members hold different parameters by hand (stages of a
            pipeline, ZeroRedundancyOptimizer) and bound the norm of all of them: each makes every
            step, with gradients or without. None: this process's own. What DTensors shard is added
            up in any case.
        state_dtype: dtype of the moments of 16-bit parameters: float32, bfloat16, float16, or
            float64, which the reference alone takes. Other parameters have moments of their own
            dtype.
        backend: ``"auto"`` (the fastest that serves the tensors), ``"triton"``, ``"cpu"`` or
            ``"reference"``.

    Raises:
        ValueError: a value outside its range; parameters that share memory or appear twice.
        TypeError: a parameter that is not a real floating-point tensor; parameters in a set, or a
            model or dict in place of them; a value of the wrong type.
    """

    # The constructor holds its groups against each other once, when all of them are there.
    _is_made = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        drop_prob: float | Tensor | Schedule = 0.5,
        granularity: str = "element",
        select: str = "bernoulli",
        period: str | int = "step",
        site: str = "grad",
        rescale: bool | str = False,
        mask_decay: bool = True,
        stochastic_rounding: bool = False,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        masked_norm: bool = False,
        norm_group: Any = None,
        state_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"Invalid backend: {backend!r}: expected one of {BACKENDS}")
        if state_dtype not in DTYPES:
            raise ValueError(f"Invalid state_dtype: {state_dtype!r}: expected one of {DTYPES}")
        check_listed(params)
        self.max_grad_norm, self.masked_norm = max_grad_norm, masked_norm
        self.norm_group = norm_group
        self.grad_norm: Tensor | None = None
        clipping_of(max_grad_norm, masked_norm, norm_group)  # checks them
        self._state_dtype = state_dtype
        self._backend = backend
        # torch.amp.GradScaler then sets `grad_scale` and `found_inf` while it calls the step, which
        # reads them on the device instead of waiting for it.
        self._step_supports_amp_scaling = fused is not False
        self._make_parts()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "drop_prob": drop_prob,
            "granularity": granularity,
            "select": select,
            "period": period,
            "site": site,
            "rescale": rescale,
            "mask_decay": mask_decay,
            "stochastic_rounding": stochastic_rounding,
            "seed": seed,
            "maximize": maximize,
            "capturable": capturable,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": None,
            "decoupled_weight_decay": True,
        }
        first = defaults | {"drop_prob": drop_prob(0) if callable(drop_prob) else drop_prob}
        make_plain(first)
        check_values(first)
        defaults |= {key: value for key, value in first.items() if key != "drop_prob"}
        self._is_made = False
        super().__init__(params, defaults)
        del self._is_made
        check_disjoint((), [param for group in self.param_groups for param in group["params"]])

    def __repr__(self) -> str:
        """Name and knobs of each group; lists as long as the parameters are cut short."""
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            hidden = {"params"} if any(group[LOADED_MASKS]) else {"params", LOADED_MASKS}
            shown = sorted(group.keys() - hidden - CONSTANTS.keys())
            lines += [f"    {key}: {beginning(group[key])}" for key in shown]
        return "\n".join([*lines, ")"])

    # -- parameters and groups ---------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its parameters are masked from the next step on.

        Args:
            param_group: ``params`` and any knobs of the constructor, ``stream_ids``, ``layers``.

        Raises:
            ValueError: as the constructor; no ``params``; ids or layers that do not fit. The
                optimizer is unchanged then, as it is where another error is raised.
            TypeError: as the constructor; no dict; ids or layers that are no list.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        self._counters.catch_up(self.param_groups)
        group = dict(param_group)
        for name in OF_ALL_GROUPS & group.keys():  # ZeroRedundancyOptimizer gives them twice
            own = self.__dict__[_ATTRIBUTES.get(name, name)]
            if group[name] is own or group[name] == own:
                del group[name]
        if "params" not in group:
            raise ValueError(f"expected params in a param group, got {sorted(group)} alone")
        check_listed(group["params"])
        if not isinstance(group["params"], Tensor):
            group["params"] = list(group["params"])  # once: it may be a generator
        added = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        tensors = [item[1] if isinstance(item, tuple) else item for item in added]
        for tensor in tensors:
            check_param(local_tensor(tensor))
            shard_of(tensor)
        looked_at = self.param_groups if self._is_made else ()
        check_disjoint([param for other in looked_at for param in other["params"]], tensors)

        others = list(self.param_groups)
        try:
            super().add_param_group(group)
            schedule = group["drop_prob"] if callable(group["drop_prob"]) else None
            complete(group, others)
        except BaseException:
            self.param_groups[:] = others
            raise
        self._knobs.add(group, schedule)
        self._plan_cache.add(group)
        self._counters.add(group)

    # -- the step ----------------------------------------------------------------------------------

    # Kept out of compiled graphs, as parts of torch's optimizers are: tables hold addresses.
    @torch._disable_dynamo
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned, None without one.

        Raises:
            RuntimeError: a gradient or a state that does not match its parameter; a backend that
                cannot serve it; param groups that were appended or taken away by hand; a graph
                capture without ``capturable=True``, of a parameter's first step, of the first one
                after a state was loaded, or of parameters on several devices; another mask than the
                one of :meth:`skip_dropped`, or a step within its block. Nothing has changed, here
                and below.
            ValueError: a param group holds a value outside its range, a list that no longer fits
                its parameters, or counters that somebody has put there and that the other groups do
                not have, or that came with another seed; an engine has put its partitions in place
                of parameters.
            TypeError: a param group holds a value of the wrong type.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        was_enabled = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)  # as torch.no_grad(), which makes 13 calls of it
            self._make_step()
        finally:
            torch._C._set_grad_enabled(was_enabled)
        return loss

    def _make_step(self) -> None:
        self._skipping.check_closed()
        check_capture(self.param_groups, self._knobs.has_schedules)
        clipping = clipping_of(self.max_grad_norm, self.masked_norm, self.norm_group)
        self._counters.look(self.param_groups)
        knobs = self._next_knobs()
        self._counters.expect_masks(self.param_groups, knobs)
        params = [param for group in self.param_groups for param in group["params"]]
        grads = local_grads(params)
        if self._skipping:
            check_skippable(knobs, clipping)
            self._skipping.check(self.dropped_params())
            grads = self._skipping.fill(params, grads)
        plan = self._plan_cache.plan(
            self.param_groups,
            params,
            grads,
            self.state,
            knobs,
            self._initial_state,
            self._loaded_masks,
        )
        keys = list(plan.executors)
        counters = self._counters.on(keys, self.param_groups)
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if not isinstance(found_inf, Tensor):  # an empty sum, where there is no gradient
            found_inf = None
        self.grad_norm = plan.step(grads, knobs, counters, grad_scale, found_inf, clipping)
        self._counters.advance(keys, self.param_groups, found_inf)
        self._skipping.forget()
