"""``FusedGradDropAdamW``: AdamW with stochastically masked gradients, as a torch optimizer."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from reprlib import repr as beginning  # of long lists
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from .schedules import Schedule
from .state.checkpoint import (
    as_tensor,
    fill_in,
    keep_tensors,
    loaded_groups,
    loaded_state,
    n_steps_of,
    warn_overridden,
)
from .state.counters import Counters, agreed_counters
from .state.group_knobs import GroupKnobs
from .state.groups import (
    CONSTANTS,
    LOADED_MASKS,
    OF_ALL_GROUPS,
    Group,
    check_values,
    complete,
    draw_of,
    make_plain,
)
from .state.loaded_masks import LoadedMasks, lost, masks_by_param, masks_of_state
from .state.log_values import mask_values
from .state.plan_cache import PlanCache
from .state.skipping import Skipping, check_skippable
from .step.backends import BACKENDS, resolve
from .step.checks import DTYPES, check_capture, check_draw, check_param, is_capturing
from .step.clipping import clipping_of
from .step.knobs import Knobs
from .step.overlap import check_disjoint
from .step.sharding import local_grads, local_tensor, shard_of

# Where arguments of the whole optimizer are kept, unless under their own names.
_ATTRIBUTES = {"state_dtype": "_state_dtype", "backend": "_backend"}
# What a pickle holds beside torch's own, and what one without it means.
_PICKLED = {
    "_state_dtype": torch.float32,
    "_backend": "auto",
    "max_grad_norm": None,
    "masked_norm": False,
    "norm_group": None,
    "grad_norm": None,
    "_step_supports_amp_scaling": True,
}


class FusedGradDropAdamW(Optimizer):
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
    state dicts load here and which loads ours.

    Args:
        params: tensors, param groups, or ``model.named_parameters()`` (names give the layers).
        lr: learning rate, >= 0; a float, or a tensor of one element that is read on the device.
        betas: decay of the first and second moment, each in [0, 1); floats, or both as tensors of
            one element on the CPU.
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        drop_prob: probability in [0, 1] that an entry is dropped; or a schedule, a callable of the
            number of finished steps (``graddrop.schedules``), in force until a group's
            ``drop_prob`` is set; or a tensor of one element, read on the device. A group with
            ``drop_prob=0`` is exempt. With a ``GradScaler`` a schedule waits for the device, which
            alone knows which steps were skipped; a tensor does not.
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
        rescale: scale what is kept by 1 / (realised keep probability).
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
            masks drop, instead of that of all gradients.
        norm_group: process group whose members hold different parameters by hand (stages of a
            pipeline, ZeroRedundancyOptimizer) and bound the norm of all of them: each makes every
            step, with gradients or without. None: this process's own. What DTensors shard is added
            up in any case.
        state_dtype: dtype of the moments of 16-bit parameters, ``torch.float32`` or the
            parameters' own; other parameters have moments of their own dtype.
        backend: ``"auto"`` (the fastest that serves the tensors), ``"triton"``, ``"cpu"`` or
            ``"reference"``.

    Raises:
        ValueError: a value outside its range; parameters that share memory or appear twice.
        TypeError: a parameter that is not a real floating-point tensor, parameters in a set, or a
            value of the wrong type.
    """

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
        rescale: bool = False,
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
        if isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, got a set: "
                "their order names them in the masks"
            )
        self.max_grad_norm, self.masked_norm = max_grad_norm, masked_norm
        self.norm_group = norm_group
        self.grad_norm: Tensor | None = None
        clipping_of(max_grad_norm, masked_norm, norm_group)  # checks them
        self._state_dtype = state_dtype
        self._backend = backend
        # torch.amp.GradScaler then sets `grad_scale` and `found_inf` while it calls the step, which
        # reads them on the device instead of waiting for it.
        self._step_supports_amp_scaling = fused is not False
        self._counters = Counters()
        self._plan_cache = PlanCache(backend)
        self._knobs = GroupKnobs()
        self._skipping = Skipping()
        self._loaded_masks = LoadedMasks()
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
        super().__init__(params, defaults)

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
            ValueError: as the constructor. The optimizer is unchanged then.
            TypeError: as the constructor.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        self._counters.sync(self.param_groups)
        group = dict(param_group)
        for name in OF_ALL_GROUPS & group.keys():  # ZeroRedundancyOptimizer gives them twice
            own = self.__dict__[_ATTRIBUTES.get(name, name)]
            if group[name] is own or group[name] == own:
                del group[name]
        if not isinstance(group["params"], (Tensor, set)):
            group["params"] = list(group["params"])  # once: it may be a generator
        added = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        tensors = [item[1] if isinstance(item, tuple) else item for item in added]
        for tensor in tensors:
            check_param(local_tensor(tensor))
            shard_of(tensor)
        known = [param for known_group in self.param_groups for param in known_group["params"]]
        check_disjoint(known, tensors)

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

    # -- masks -------------------------------------------------------------------------------------

    @property
    def draws(self) -> list[int]:
        """Index of the mask that the next :meth:`step` uses, per param group."""
        self._counters.sync(self.param_groups)
        return [draw_of(group) for group in self.param_groups]

    def new_mask(self, draw: int | None = None) -> None:
        """Begin the next mask of every group with ``period="epoch"``.

        Args:
            draw: index of the mask to begin, in [0, 2**32); None: the next one. A callback that
                names the epoch draws the same masks in a resumed run.

        Raises:
            ValueError: ``draw`` outside its range.
            TypeError: ``draw`` is no int.
        """
        if draw is None:
            self._counters.sync(self.param_groups)
            draw = self.param_groups[0]["masks_begun"] + 1
        check_draw(draw)
        self._counters.begin_mask(draw, self.param_groups)

    @torch.no_grad()
    def load_masks(self, masks: Mapping[str | Tensor, Tensor | None]) -> None:
        """Set masks that replace the drawn ones, whatever ``drop_prob``, from the next step on.

        A loaded mask acts at its group's ``site``; ``rescale`` does not apply, and a step reads an
        eighth of a byte more per entry. ``graddrop.mask_makers`` makes some. Checkpoints have it:
        for one of ``torch.distributed.checkpoint``, which fills what its reader has, load any mask
        for these parameters first. A CUDA graph follows a mask that replaces another; of one that
        comes or goes it knows nothing.

        Args:
            masks: by name (where the optimizer has names) or parameter: bool, of the whole
                parameter's shape, on any device, True where it is kept; for a DTensor either the
                whole or a DTensor on its mesh (then all its processes call this together). None
                removes a mask. Parameters that are not named keep what they have.

        Raises:
            TypeError: no mapping, a key that is neither, or what is no bool tensor.
            ValueError: an unknown name or parameter, one that comes twice, or a mask of another
                shape, of another mesh or without data.
            RuntimeError: a CUDA graph is being captured. In all cases nothing has changed.
        """
        if is_capturing():
            raise RuntimeError(
                "expected no CUDA graph to be captured in load_masks, which it would load again at "
                "each replay: load masks before or between"
            )
        prepared = self._loaded_masks.prepare(masks_by_param(self.param_groups, masks))
        if self._loaded_masks.put(prepared, self.param_groups):
            self._plan_cache.forget()

    def keep_mask(self, param: Tensor) -> Tensor:
        """The mask that the next :meth:`step` uses for a parameter.

        Args:
            param: one of the optimizer's parameters.

        Returns:
            bool tensor, shape of ``param`` (of its local shard, for a DTensor), on its device;
            True: kept.

        Raises:
            ValueError: ``param`` is not one of the optimizer's.
            TypeError: ``param`` is no tensor.
        """
        if not isinstance(param, Tensor):
            raise TypeError(f"expected one of the optimizer's parameters, got {type(param)}")
        self._counters.sync(self.param_groups)
        for group, knobs in zip(self.param_groups, self._next_knobs(), strict=True):
            for index, candidate in enumerate(group["params"]):
                if candidate is param:
                    local = local_tensor(param)
                    if (loaded := self._loaded_masks.keep_mask(param)) is not None:
                        return loaded
                    keep = knobs.keep_mask(
                        tuple(local.shape),
                        stream_id=group["stream_ids"][index],
                        layer=group["layers"][index],
                        shard=shard_of(param),
                        draw=draw_of(group),
                        device=local.device,
                    )
                    return keep if keep is not None else torch.ones_like(local, dtype=torch.bool)
        raise ValueError(
            f"expected one of the optimizer's parameters, got shape {tuple(param.shape)}"
        )

    def dropped_params(self) -> list[Tensor]:
        """The parameters that the next :meth:`step` drops as a whole, known before backward.

        One decision does so: with ``granularity="tensor"`` and ``"layer"``, and with
        ``drop_prob=1``. What chance drops entry by entry is not listed. Under ``site="grad"`` and
        ``"freeze"`` their gradients enter neither parameters nor moments and may be left stale. The
        norm of ``max_grad_norm`` reads them all the same, unless ``masked_norm=True``. Without a
        gradient (None), ``step`` too stands still; see :meth:`skip_dropped`. A loaded mask is no
        such decision: its parameter is not listed.
        """
        self._counters.sync(self.param_groups)
        dropped = []
        for group, knobs in zip(self.param_groups, self._next_knobs(), strict=True):
            keeps = knobs.keep_wholes(group["stream_ids"], group["layers"], draw_of(group))
            params_and_keeps = zip(group["params"], keeps, strict=True)
            dropped += [
                param
                for param, keep in params_and_keeps
                if not keep and param not in self._loaded_masks
            ]
        return dropped

    def dropped_layers(self) -> list[int]:
        """Numbers of the layers that the next :meth:`step` drops as a whole, in ascending order.

        A layer is dropped if every parameter in it is: by one decision under
        ``granularity="layer"``, by chance under ``"tensor"``.
        """
        dropped = set(map(id, self.dropped_params()))
        by_layer: dict[int, bool] = {}
        for group in self.param_groups:
            for param, layer in zip(group["params"], group["layers"], strict=True):
                if layer is not None:
                    by_layer[layer] = by_layer.get(layer, True) and id(param) in dropped
        return sorted(layer for layer, whole in by_layer.items() if whole)

    def log_values(self, *, wait: bool = False) -> dict[str, Any]:
        """What a run wants to log, after a step: its norm, and the masks of the next step.

        Args:
            wait: read what a device holds. Otherwise nothing waits for one: numbers on it are 0-dim
                tensors, and wholes that are dropped are not counted but expected.

        Returns:
            ``grad_norm``: of the last step, as :attr:`grad_norm`; None where none is looked at.
            ``drop_prob``: in force, mean over the entries whose masks are drawn.
            ``kept_fraction``: of the entries of all parameters. ``kept_is_exact``: whether it is
            counted, as for decisions on whole parameters and layers and for loaded masks, or
            expected, as for drawn entries and rows. ``dropped_layers``: as :meth:`dropped_layers`;
            None unless ``wait``.

        Raises:
            ValueError: a param group holds a value outside its range.
        """
        knobs = self._next_knobs() if wait else self._knobs.read(self.param_groups)
        if wait:
            self._counters.sync(self.param_groups)
        norm = self.grad_norm
        return {
            "grad_norm": norm.item() if wait and norm is not None else norm,
            **mask_values(self.param_groups, knobs, self._loaded_masks, wait=wait),
            "dropped_layers": self.dropped_layers() if wait else None,
        }

    @contextmanager
    def skip_dropped(self) -> Iterator[None]:
        """Within it, what the next :meth:`step` drops as a whole needs no gradient.

        ::

            with optimizer.skip_dropped():
                loss = model(inputs)
                loss.backward()
            optimizer.step()

        The gradients of the weights that :meth:`dropped_params` lists are not computed, nor those
        of the activations below the lowest parameter that is kept. The training is the same, bit
        for bit: the step takes what was skipped as zero, as the masks make it. Every pass of an
        accumulated batch may have a block of its own, and blocks may be nested. Where every
        parameter is dropped, none is skipped. Parameters come out as they went in.

        It differs from a training without it in what others read from the gradients:

        * clipping outside the optimizer, and a GradScaler's search for infinities, see none where
          they were skipped: ``max_grad_norm`` with ``masked_norm=True`` clips the same;
        * a dropped parameter that the forward pass does not use has a gradient of zero, as if it
          did;
        * DistributedDataParallel needs ``find_unused_parameters=True``;
        * ``torch.compile`` compiles anew for each set of dropped parameters, up to its limit;
        * counts of steps on a device, as with a GradScaler, are waited for, to know the mask.

        Raises:
            ValueError: a group drops wholes under ``site="update"``, or ``max_grad_norm`` is set
                without ``masked_norm``: the step reads the gradients of what it drops.
            RuntimeError: another mask than the one of gradients that are being accumulated
                (:meth:`new_mask`, knobs or a loaded state in between), here or in :meth:`step`;
                :meth:`step` within the block; the capture of a CUDA graph.
        """
        check_skippable(self._next_knobs(), clipping_of(self.max_grad_norm, self.masked_norm))
        params = [param for group in self.param_groups for param in group["params"]]
        with self._skipping.skip(params, self.dropped_params()):
            yield

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; masks may change before the next backward pass, see :meth:`skip_dropped`."""
        super().zero_grad(set_to_none)
        self._skipping.begin_anew()

    def _next_knobs(self) -> list[Knobs]:
        """The knobs of the step to come, one per group, checked."""
        if self._knobs.has_schedules:
            self._counters.sync(self.param_groups)
        return self._knobs.read(self.param_groups)

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
                cannot serve it; a graph capture without ``capturable=True``, or of a parameter's
                first step; another mask than the one of :meth:`skip_dropped`. Nothing has changed.
            ValueError: a param group holds a value outside its range. Nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._make_step()
        return loss

    def _make_step(self) -> None:
        self._skipping.check_closed()
        check_capture(self.param_groups, self._knobs.has_schedules)
        clipping = clipping_of(self.max_grad_norm, self.masked_norm, self.norm_group)
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

    # -- state -------------------------------------------------------------------------------------

    def _moment_dtype(self, param: Tensor) -> torch.dtype:
        return self._state_dtype if param.dtype.itemsize == 2 else param.dtype

    def _initial_state(self, param: Tensor, group: Group) -> dict[str, Tensor]:
        dtype = self._moment_dtype(param)
        # A GPU step counts on the device, as torch's fused and capturable steps do.
        on_device = resolve(self._backend, param.device, (param.dtype, param.dtype, dtype))
        step_device = param.device if on_device == "triton" or group["capturable"] else "cpu"
        return {
            "step": torch.zeros((), dtype=torch.float32, device=step_device),
            "exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(param, dtype=dtype, requires_grad=False),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state, in the form of ``torch.optim.AdamW``, with our knobs in the groups.

        Where a mask is loaded for a parameter (:meth:`load_masks`), its state has a ``keep_mask``,
        and its group says so in ``loaded_masks``, a list of bools, one per parameter.
        """
        self._counters.sync(self.param_groups)
        for group in self.param_groups:
            make_plain(group)
        self._loaded_masks.list_in(self.param_groups)
        own = self.state
        try:
            self.state = self._loaded_masks.beside(own)  # type: ignore[assignment]
            state_dict = super().state_dict()
        finally:
            self.state = own
        for group in state_dict.get("param_groups", ()):  # ZeroRedundancyOptimizer puts them there
            for name in OF_ALL_GROUPS & group.keys():
                del group[name]
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of ours, or one of ``torch.optim.AdamW``.

        Knobs in the loaded groups replace the constructor's; a warning names both where they
        differ. A schedule of ``drop_prob`` goes on from the loaded step. With a state of
        ``torch.optim.AdamW`` the knobs and loaded masks stay as they are here. Moments are loaded
        in the dtypes that they have here, not in the parameters'.

        Args:
            state_dict: as :meth:`state_dict` made it. It is not changed and not aliased.

        Raises:
            ValueError: groups of other sizes, missing keys, moments or masks of other shapes, a
                mask that the groups name and the state lacks (a distributed checkpoint reads what
                its reader has: call :meth:`load_masks` first), ``amsgrad``, or knobs outside their
                range. Nothing has changed then.
            TypeError: a knob or a mask of the wrong type. Nothing has changed then.
        """
        # torch's own load casts moments to the parameters' dtypes and cannot be told otherwise.
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        loaded = loaded_state(self.param_groups, state_dict)
        groups = loaded_groups(
            self.param_groups, state_dict["param_groups"], n_steps_of(loaded.values())
        )
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for group in groups:
            for param in group["params"]:
                if param in loaded:
                    state[param] = self._initial_state(param, group)
                    for key, value in state[param].items():
                        value.copy_(as_tensor(loaded[param][key]).reshape(value.shape))
        masks = self._loaded_masks.prepare(masks_of_state(groups, state_dict))
        if n_lost := lost(masks, self._loaded_masks):
            warnings.warn(
                f"the loaded state has no masks for {n_lost} parameters that have one here, and "
                "removes them: call load_masks after loading to keep them",
                stacklevel=2,
            )
        schedules = self._knobs.schedules(self.param_groups)
        warn_overridden(self.param_groups, groups, schedules)
        keep_tensors(self.param_groups, groups)
        self.__setstate__({"state": state, "param_groups": groups, "_schedules": schedules})
        self._loaded_masks.put(masks, self.param_groups)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        self._counters.sync(self.param_groups)
        own: dict[str, Any] = {name: self.__dict__[name] for name in _PICKLED}
        own["_schedules"] = self._knobs.schedules(self.param_groups)
        own["_loaded_masks"] = self._loaded_masks
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups, mine = state["param_groups"], self.__dict__
        known = mine.get("param_groups", ())
        fill_in(groups, known, state.get("defaults", mine.get("defaults", {})))
        counters = agreed_counters(groups, n_steps_of(state["state"].values()))
        schedules = state.get("_schedules")
        if schedules is None and len(known) == len(groups):
            schedules = self._knobs.schedules(self.param_groups)
        super().__setstate__({key: state[key] for key in state if key != "_schedules"})
        for group in groups:
            group.update(counters)
        for name, value in _PICKLED.items():
            mine.setdefault(name, value)
        self._counters = Counters()
        self._knobs = GroupKnobs(groups, schedules or [None] * len(groups))
        if "_plan_cache" not in mine:  # unpickled
            self._plan_cache = PlanCache(self._backend)
            self._skipping = Skipping()
        mine.setdefault("_loaded_masks", LoadedMasks())
        self._plan_cache.forget()  # it holds on to the old state
