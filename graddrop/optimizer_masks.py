"""What a user asks an optimizer's masks, and tells them, between two steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .optimizer_state import StatefulOptimizer
from .state.groups import draw_of
from .state.loaded_masks import masks_by_param
from .state.log_values import mask_values
from .state.skipping import check_skippable
from .step.checks import check_draw, is_capturing
from .step.clipping import clipping_of
from .step.knobs import Knobs
from .step.sharding import local_tensor, shard_of


class MaskedOptimizer(StatefulOptimizer):
    """An optimizer whose next mask is known before its step, and may be set."""

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
            ValueError: ``param`` is not one of the optimizer's; as :meth:`step` of a param group.
            TypeError: ``param`` is no tensor; as :meth:`step` of a param group.
            RuntimeError: param groups that were appended or taken away by hand.
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
        norm of ``max_grad_norm``, unless ``masked_norm=True``, and a GradScaler's search for
        infinities read them all the same. Without a gradient (None), ``step`` too stands still; see
        :meth:`skip_dropped`. A loaded mask is no such decision: its parameter is not listed.

        Raises:
            ValueError: of a param group, as :meth:`step`; so are TypeError and RuntimeError.
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

        Raises:
            ValueError: of a param group, as :meth:`step`; so are TypeError and RuntimeError.
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
            ValueError: of a param group, as :meth:`step`; so are TypeError and RuntimeError.
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
