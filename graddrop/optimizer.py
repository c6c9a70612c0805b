"""``FusedGradDropAdamW``: AdamW with stochastically masked gradients, as a torch optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from .backends import BACKENDS, resolve
from .functional import check_grad, check_knobs, check_moments, check_param
from .groups import COUNTERS, complete, draw_of, knobs_of, merge_saved, warn_overridden
from .overlap import check_disjoint
from .plan import Key, Plan, Slot
from .schedules import Schedule
from .sharding import local_tensor, shard_of
from .tables import Entry, Knobs


class FusedGradDropAdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019) whose gradients, or updates, are stochastically masked.

    A drop-in for ``torch.optim.AdamW``: masking and update are one pass over memory. At
    ``drop_prob=0`` it is AdamW. Masks are a pure function of (seed, draw, parameter, element): the
    same bits on every backend, after resume, and under any sharding (``graddrop.mask``).

    Every argument from ``lr`` to ``seed``, and ``maximize`` and ``capturable``, may differ per
    param group. A group may also carry ``stream_ids`` (a list of ints in [0, 2**30), one per
    parameter: its id in the masks; default: its position in the optimizer) and ``layers`` (an int
    for the whole group, or a list of ints or None per parameter; default: what the parameters'
    names say, as ``"encoder.layer.3.attention"`` says 3).

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, as in ``torch.optim.AdamW``, whose
    state dicts load here and which loads ours.

    Args:
        params: tensors, param groups, or ``model.named_parameters()`` (names give the layers).
        lr: learning rate, >= 0; a float, or a tensor of one element that is read on the device.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay per unit of lr, >= 0.
        drop_prob: probability in [0, 1] that an entry is dropped; or a schedule, a callable of the
            number of finished steps (``graddrop.schedules``); or a tensor of one element, read on
            the device. A group with ``drop_prob=0`` is exempt.
        granularity: what shares one decision: ``"element"``, ``"row"`` (dimension 0),
            ``"tensor"`` or ``"layer"`` (parameters in no layer are kept).
        period: how long a mask lives: ``"step"``, an int K >= 1 (K steps) or ``"epoch"`` (until
            :meth:`new_mask` is called).
        site: where the mask acts: ``"grad"`` (masked gradients enter the moments), ``"update"``
            (dense moments; the parameter moves only where kept) or ``"freeze"`` (where dropped
            nothing changes, moments included).
        rescale: scale what is kept by 1 / (realised keep probability).
        mask_decay: under ``site="update"``, whether weight decay too acts only where kept.
        seed: of the masks, in [0, 2**64).
        maximize: ascend instead of descend.
        capturable: allow the step to be captured in a CUDA graph.
        state_dtype: dtype of the moments of 16-bit parameters, ``torch.float32`` or the
            parameters' own; other parameters have moments of their own dtype.
        backend: ``"auto"`` (the fastest that serves the tensors), ``"triton"``, ``"cpu"`` or
            ``"reference"``.

    Raises:
        ValueError: a value outside its range; parameters that share memory or appear twice.
        TypeError: a parameter that is not a real floating-point tensor, or a seed that is no int.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        drop_prob: float | Tensor | Schedule = 0.5,
        granularity: str = "element",
        period: str | int = "step",
        site: str = "grad",
        rescale: bool = False,
        mask_decay: bool = True,
        seed: int = 0,
        maximize: bool = False,
        capturable: bool = False,
        state_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"Invalid backend: {backend!r}: expected one of {BACKENDS}")
        if not state_dtype.is_floating_point:
            raise ValueError(f"Invalid state_dtype: {state_dtype}: expected a floating dtype")
        self._state_dtype = state_dtype
        self._backend = backend
        self._schedules: list[Schedule | None] = []
        self._counters: dict[Key, Tensor] = {}
        self._plan: Plan | None = None
        self._checked_rows: list[list[float]] = []
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "drop_prob": drop_prob,
            "granularity": granularity,
            "period": period,
            "site": site,
            "rescale": rescale,
            "mask_decay": mask_decay,
            "seed": seed,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    # -- parameters and groups ---------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its parameters are masked from the next step on.

        Args:
            param_group: ``params`` and any knobs of the constructor, ``stream_ids``, ``layers``.

        Raises:
            ValueError: as the constructor. The optimizer is unchanged then.
            TypeError: as the constructor.
        """
        group = dict(param_group)
        if not isinstance(group.get("params"), (Tensor, set)):
            group["params"] = list(group["params"])
        added = group["params"]
        tensors = [
            item[1] if isinstance(item, tuple) else item
            for item in ([added] if isinstance(added, Tensor) else added)
        ]
        for tensor in tensors:
            check_param(tensor)
        known = [param for known_group in self.param_groups for param in known_group["params"]]
        if len(set(map(id, tensors))) != len(tensors):
            raise ValueError("a parameter appears twice in one param group: pass it once")
        if not {id(param) for param in known}.isdisjoint(map(id, tensors)):
            raise ValueError("some parameters appear in more than one parameter group")
        check_disjoint([local_tensor(param) for param in (*known, *tensors)])

        super().add_param_group(group)
        schedule = group["drop_prob"] if callable(group["drop_prob"]) else None
        try:
            complete(group, self.param_groups[:-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._schedules.append(schedule)
        self._reset_plan()

    # -- masks -------------------------------------------------------------------------------------

    @property
    def draws(self) -> list[int]:
        """Index of the mask that the next :meth:`step` uses, per param group."""
        self._sync_counters()
        return [draw_of(group) for group in self.param_groups]

    def new_mask(self, draw: int | None = None) -> None:
        """Begin the next mask of every group with ``period="epoch"``.

        Args:
            draw: index of the mask to begin, in [0, 2**32); None: the next one. A callback that
                names the epoch draws the same masks in a resumed run.

        Raises:
            ValueError: ``draw`` outside its range.
        """
        self._sync_counters()
        draw = self.param_groups[0]["masks_begun"] + 1 if draw is None else draw
        if not 0 <= draw < 1 << 32:
            raise ValueError(f"Invalid draw: {draw}: expected an integer in [0, 2**32)")
        for group in self.param_groups:
            group["masks_begun"] = draw
        for counters in self._counters.values():
            counters[1] = draw

    def keep_mask(self, param: Tensor) -> Tensor:
        """The mask that the next :meth:`step` uses for a parameter.

        Args:
            param: one of the optimizer's parameters.

        Returns:
            bool tensor, shape of ``param`` (of its local shard, for a DTensor), on its device;
            True: kept.

        Raises:
            ValueError: ``param`` is not one of the optimizer's.
        """
        self._apply_schedules()
        for group in self.param_groups:
            for index, candidate in enumerate(group["params"]):
                if candidate is param:
                    keep = self._keep_mask(group, index)
                    local = local_tensor(param)
                    return keep if keep is not None else torch.ones_like(local, dtype=torch.bool)
        raise ValueError(
            f"expected one of the optimizer's parameters, got shape {tuple(param.shape)}"
        )

    def dropped_params(self) -> list[Tensor]:
        """The parameters that the next :meth:`step` drops as a whole, known before backward.

        Only ``granularity="tensor"`` and ``"layer"`` drop whole parameters by decision; with the
        finer ones none is listed. Under ``site="grad"`` or ``"freeze"`` their gradients are not
        read for anything.
        """
        self._apply_schedules()
        dropped = []
        for group in self.param_groups:
            if group["granularity"] in ("tensor", "layer"):
                for index, param in enumerate(group["params"]):
                    keep = self._keep_mask(group, index, local_shape=())
                    if keep is not None and not keep.item():
                        dropped.append(param)
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

    def _keep_mask(
        self, group: dict[str, Any], index: int, local_shape: tuple[int, ...] | None = None
    ) -> Tensor | None:
        local = local_tensor(group["params"][index])
        whole = local_shape is not None  # a whole-tensor decision needs no shape of its own
        return knobs_of(group).keep_mask(
            tuple(local.shape) if local_shape is None else local_shape,
            stream_id=group["stream_ids"][index],
            layer=group["layers"][index],
            shard=None if whole else shard_of(group["params"][index]),
            draw=draw_of(group),
            device=torch.device("cpu") if whole else local.device,
        )

    # -- the step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned, None without one.

        Raises:
            RuntimeError: a gradient or a state that does not match its parameter; a backend that
                cannot serve it; a graph capture without ``capturable=True``. Nothing has changed.
            ValueError: a param group holds a value outside its range. Nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if (
            torch.cuda.is_initialized()
            and torch.cuda.is_current_stream_capturing()
            and not all(group["capturable"] for group in self.param_groups)
        ):
            raise RuntimeError(
                "expected capturable=True in every param group to capture step() in a CUDA graph"
            )
        self._apply_schedules()
        knobs = [knobs_of(group) for group in self.param_groups]
        if (rows := [group_knobs.row() for group_knobs in knobs]) != self._checked_rows:
            for group_knobs in knobs:
                check_knobs(group_knobs)
            self._checked_rows = rows
        for key, executor in self._current_plan(knobs).executors.items():
            executor.step(knobs, self._counters_of(key), None, None)
        for group in self.param_groups:
            group["steps_finished"] += 1
        return loss

    def _apply_schedules(self) -> None:
        for group, schedule in zip(self.param_groups, self._schedules, strict=True):
            if schedule is not None:
                group["drop_prob"] = schedule(group["steps_finished"])

    def _current_plan(self, knobs: Sequence[Knobs]) -> Plan:
        """The plan of the step to come: the last one where only gradients have moved."""
        params = [param for group in self.param_groups for param in group["params"]]
        if self._plan is None or not self._plan.follow(params, knobs):
            self._plan = self._new_plan(knobs)
        return self._plan

    def _new_plan(self, knobs: Sequence[Knobs]) -> Plan:
        # All checks come before the first change.
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    local, grad = local_tensor(param), local_tensor(param.grad)
                    check_param(local)
                    check_grad(local, grad)
                    moment_dtype = self._moment_dtype(param)
                    resolve(self._backend, local.device, (local.dtype, grad.dtype, moment_dtype))
                    if state := self.state.get(param):
                        _check_state(local, state)
        slots = []
        for index, group in enumerate(self.param_groups):
            for param, stream_id, layer in zip(
                group["params"], group["stream_ids"], group["layers"], strict=True
            ):
                if param.grad is None:
                    slots.append(Slot(param, {}, None))
                    continue
                state = self.state[param]
                if not state:
                    state.update(self._initial_state(param, group))
                entry = Entry(
                    param=local_tensor(param),
                    grad=local_tensor(param.grad),
                    exp_avg=local_tensor(state["exp_avg"]),
                    exp_avg_sq=local_tensor(state["exp_avg_sq"]),
                    step=state["step"],
                    stream_id=stream_id,
                    layer=layer,
                    shard=shard_of(param),
                    group=index,
                )
                slots.append(Slot(param, state, entry))
        return Plan(slots, knobs, self._backend)

    # -- state -------------------------------------------------------------------------------------

    def _moment_dtype(self, param: Tensor) -> torch.dtype:
        return self._state_dtype if param.dtype.itemsize == 2 else param.dtype

    def _step_device(self, param: Tensor, group: dict[str, Any]) -> torch.device:
        # A GPU step counts on the device, as torch's fused and capturable steps do.
        dtypes = param.dtype, param.dtype, self._moment_dtype(param)
        on_device = resolve(self._backend, param.device, dtypes) == "triton"
        return param.device if on_device or group["capturable"] else torch.device("cpu")

    def _initial_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        dtype = self._moment_dtype(param)
        return {
            "step": torch.zeros((), dtype=torch.float32, device=self._step_device(param, group)),
            "exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(param, dtype=dtype, requires_grad=False),
        }

    def _reset_plan(self) -> None:
        self._plan = None
        self._checked_rows = []

    def _counters_of(self, key: Key) -> Tensor:
        """(steps finished, masks begun) where an executor reads and advances them: int64 [2]."""
        if key not in self._counters:
            self._sync_counters()
            first = self.param_groups[0]
            values = [first[counter] for counter in COUNTERS]
            self._counters[key] = torch.tensor(values, dtype=torch.int64, device=key[0])
        return self._counters[key]

    def _sync_counters(self) -> None:
        """Write the counters into the groups: replays of a CUDA graph advance them unseen."""
        for counters in self._counters.values():
            values = dict(zip(COUNTERS, counters.tolist(), strict=True))
            for group in self.param_groups:
                group.update(values)
            return

    def state_dict(self) -> dict[str, Any]:
        """The state, in the form of ``torch.optim.AdamW``, with our knobs in the groups."""
        self._sync_counters()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of ours, or one of ``torch.optim.AdamW``.

        Knobs in the loaded groups replace the constructor's; a warning names both where they
        differ. A schedule of ``drop_prob`` goes on from the loaded step. With a state of
        ``torch.optim.AdamW`` the knobs stay as they are here.

        Args:
            state_dict: as :meth:`state_dict` made it. It is not changed and not aliased.

        Raises:
            ValueError: groups of other sizes, missing keys, moments of other shapes, ``amsgrad``,
                or knobs outside their range. Nothing has changed then.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        groups = merge_saved(self.param_groups, state_dict["param_groups"])
        ids = [param_id for group in groups for param_id in group["params"]]
        loaded = {
            param: state_dict["state"][param_id]
            for param_id, param in zip(ids, params, strict=True)
            if state_dict["state"].get(param_id)
        }
        for param, state in loaded.items():
            _check_loaded_state(param, state)
        steps = [int(state["step"]) for state in loaded.values()]
        for group in groups:
            group.setdefault("steps_finished", max(steps, default=0))
            group.setdefault("masks_begun", 0)
            check_knobs(knobs_of(group))
        scheduled = [schedule is not None for schedule in self._schedules]
        warn_overridden(self.param_groups, state_dict["param_groups"], scheduled)

        super().load_state_dict({**state_dict, "param_groups": groups})
        # torch has cast the moments to the parameters' dtype; take them over from the source.
        for group in self.param_groups:
            for param in group["params"]:
                if param in loaded:
                    fresh = self._initial_state(param, group)
                    for key, value in loaded[param].items():
                        if key in fresh:
                            fresh[key].copy_(torch.as_tensor(value))
                    self.state[param] = fresh

    def __getstate__(self) -> dict[str, Any]:
        self._sync_counters()
        own = {name: self.__dict__[name] for name in ("_state_dtype", "_backend", "_schedules")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._counters = {}
        self._reset_plan()


def _check_state(local: Tensor, state: dict[str, Any]) -> None:
    missing = {"step", "exp_avg", "exp_avg_sq"} - state.keys()
    if missing:
        raise RuntimeError(f"expected state step, exp_avg, exp_avg_sq; missing: {sorted(missing)}")
    check_moments(
        local, local_tensor(state["exp_avg"]), local_tensor(state["exp_avg_sq"]), state["step"]
    )


def _check_loaded_state(param: Tensor, state: dict[str, Any]) -> None:
    missing = {"step", "exp_avg", "exp_avg_sq"} - state.keys()
    if missing:
        raise ValueError(
            f"expected state step, exp_avg, exp_avg_sq for a parameter of shape "
            f"{tuple(param.shape)}; missing: {sorted(missing)}"
        )
    for key in ("exp_avg", "exp_avg_sq"):
        if state[key].shape != param.shape:
            raise ValueError(
                f"expected {key} of shape {tuple(param.shape)}, got {tuple(state[key].shape)}: "
                "this state belongs to other parameters"
            )
