"""Main weights: the FP32 copy that the optimizer updates, of which the model's weights are roundings.

Where each rank keeps its share of them, which places of a checkpoint's tensors a parameter is, and what "rounds to"
means in each format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from emma.tools.training.stored_weights import Piece

__all__ = [
    "MainWeight",
    "first_different",
    "first_misrounded",
    "main_weights",
    "misrounded",
    "pieces",
    "refresh_model",
]

_CHUNK = 1 << 24  # elements compared at once, so that a full card needs 0.3 GiB for it
_BF16_HALF = 0x8000  # the bits of an FP32 number that BF16 drops, at the middle between two BF16 numbers


@dataclass(frozen=True)
class MainWeight:
    """This rank's share of a parameter's main weights.

    Args:
        name: of the parameter in the model.
        parameter: the model's weights, whole.
        start: first element of `parameter`, flat, in the share.
        size: elements of the share.
        owner: the Megatron optimizer that keeps it.
    """

    name: str
    parameter: Any
    start: int
    size: int
    owner: Any

    @property
    def held_inside(self) -> bool:
        """Whether Transformer Engine's optimizer keeps the main weights in its own state, made in the first step."""
        return isinstance(self.owner, DistributedOptimizer) and bool(
            self.owner.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        )

    @property
    def exact(self) -> bool:
        """Whether they are kept in FP32 (`optimizer.main_params_dtype`)."""
        return not self.held_inside or self.owner.config.main_params_dtype == torch.float32

    @property
    def _inner(self) -> Any:
        """The tensor that the inner optimizer knows the share by."""
        group, order = self.owner.model_param_group_index_map[self.parameter]
        return self.owner.optimizer.param_groups[group]["params"][order]

    def states(self) -> dict[str, torch.Tensor]:
        """The share in FP32, flat: `param`, and, once there is one, each moment by its name."""
        if self.held_inside:
            self._begin()
            found = self.owner._get_main_param_and_optimizer_states(self.parameter)
        else:
            main = self._main
            state = self.owner.optimizer.state
            found = {"param": main, **state.get(main, {})}
        return {
            key: value.detach().reshape(-1).float()
            for key, value in found.items()
            if isinstance(value, torch.Tensor) and value.numel() == self.size and key != "step"
        }

    @property
    def _main(self) -> torch.Tensor:
        if isinstance(self.owner, DistributedOptimizer):
            main: torch.Tensor = self._inner
            return main
        # Weights in FP32 are their own main weights.
        return getattr(self.parameter, "main_param", self.parameter)

    def _begin(self) -> None:
        inner = self.owner.optimizer
        if not inner.state[self._inner]:
            inner.initialize_state(
                self._inner, inner.store_param_remainders and self._inner.dtype == torch.bfloat16
            )

    def fill(self, values: torch.Tensor) -> None:
        """Sets the share; `values` are FP32, flat, on the share's device."""
        if self.held_inside:
            self.owner._set_main_param_and_optimizer_states(self.parameter, {"param": values})
        else:
            self._main.data.view(-1).copy_(values)


def main_weights(model: list[Any], optimizer: Any) -> list[MainWeight]:
    """The shares of this rank, in the order of the model's parameters."""
    found = {}
    for owner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(owner, "is_stub_optimizer", False):
            continue
        if isinstance(owner, DistributedOptimizer):
            for parameter in owner.model_param_gbuf_map:
                own = owner._get_model_param_range_map(parameter)["param"]
                found[parameter] = (own.start, own.size, owner)
            continue
        groups = (
            [*owner.float16_groups, *owner.fp32_from_fp32_groups]
            if isinstance(owner, Float16OptimizerWithFloat16Params)
            else [group["params"] for group in owner.param_groups]
        )
        for parameter in (parameter for group in groups for parameter in group):
            found[parameter] = (0, parameter.numel(), owner)
    names = [(name, parameter) for chunk in model for name, parameter in chunk.named_parameters()]
    return [
        MainWeight(name.replace("module.", ""), parameter, *found[parameter])
        for name, parameter in names
        if parameter in found
    ]


def pieces(sharded: Mapping[str, Any]) -> dict[Any, list[Piece]]:
    """The pieces of each parameter.

    Args:
        sharded: the model's sharded state, with the parameters themselves as data.

    Raises:
        ValueError: a part of a parameter does not lie in one run.
    """
    tensors, _ = extract_sharded_tensors_and_factories(dict(sharded))
    return {entry.data: list(_pieces(entry)) for entry in nested_values(tensors)}


def _pieces(entry: Any) -> Iterator[Piece]:
    parts = [entry]
    if isinstance(entry, ShardedTensorFactory):
        # Where a part begins is told by its view of a tensor without memory.
        whole = torch.empty(tuple(entry.data.shape), device="meta")
        parts = list(nested_values(entry.build_fn(entry.key, whole, entry.replica_id, entry.flattened_range)))
    for part in parts:
        if part.flattened_range is not None or not part.data.is_contiguous():
            raise ValueError(f"{part.key}: a part of the parameter does not lie in one run")
        yield Piece(
            part.key,
            0 if part is entry else part.data.storage_offset(),
            tuple(part.global_offset),
            (1,) * part.prepend_axis_num + tuple(part.data.shape),
            tuple(part.global_shape),
            part.allow_shape_mismatch,
        )


def first_misrounded(
    parameter: Any, start: int, main: torch.Tensor, exact: bool = True
) -> tuple[int, int] | None:
    """How many main weights do not round to the model's weights, and which is the first; None if all do.

    Args:
        parameter: the model's, whole.
        start: its first element, flat, that `main` has.
        main: FP32, flat, on any device.
        exact: as in `misrounded`.
    """
    values = parameter.detach()
    # FP8: the numbers that it stands for.
    model = (values.dequantize(dtype=torch.float32) if is_float8tensor(parameter) else values).reshape(-1)

    def wrong(first: int, last: int) -> torch.Tensor | None:
        part = model[start + first : start + last]
        there = main[first:last].to(part.device)
        # As a rule all are what rounding to even gives, and one look is enough.
        return None if torch.equal(there.to(part.dtype), part) else misrounded(parameter, part, there, exact)

    return _first(wrong, main.numel())


def first_different(held: torch.Tensor, other: torch.Tensor) -> tuple[int, int] | None:
    """How many elements have other bits, and which is the first; None if all are equal.

    Args:
        held: FP32, flat; its device compares.
        other: FP32, flat, of the same length, on any device.
    """

    def wrong(first: int, last: int) -> torch.Tensor | None:
        here, there = (values[first:last].to(held.device).view(torch.int32) for values in (held, other))
        return None if torch.equal(here, there) else here != there

    return _first(wrong, held.numel())


def _first(wrong: Callable[[int, int], torch.Tensor | None], size: int) -> tuple[int, int] | None:
    count, place = 0, 0
    for begin in range(0, size, _CHUNK):
        found = wrong(begin, min(begin + _CHUNK, size))
        if found is None:
            continue
        some = int(found.sum())
        if some and not count:
            place = begin + int(found.nonzero()[0])
        count += some
    return (count, place) if count else None


def misrounded(parameter: Any, model: torch.Tensor, main: torch.Tensor, exact: bool = True) -> torch.Tensor:
    """Where main weights do not round to the model's weights.

    FP32: they must be equal. BF16: the model's must be the nearest number; at the middle between two, either (Megatron
    rounds to even, Transformer Engine's optimizer away from zero). FP8 (E4M3, 3 bits after the point, smallest number
    2⁻⁹): no further away than the next number, at the parameter's scaling factor; beyond the largest number (448),
    delayed scaling clips.

    Args:
        parameter: the model's, whole; decides the format.
        model: some of its weights, flat; of FP8, the numbers that they stand for.
        main: FP32 main weights of the same elements.
        exact: False if the optimizer keeps main weights in 16 bits, which then are not what was rounded.

    Returns:
        A boolean for each element.
    """
    wrong = main.to(model.dtype) != model
    if is_float8tensor(parameter):
        scale_inv = _scale_inv(parameter)
        spacing = torch.clamp(model.abs() * 2.0**-3, min=scale_inv * 2.0**-9)
        clipped = (model.abs() >= 447 * scale_inv) & (main * model.sign() > model.abs())
        wrong = ((main - model).abs() > spacing) & ~clipped
    elif model.dtype == torch.bfloat16 and not exact:
        wrong = (main - model.float()).abs() > torch.clamp(model.float().abs() * 2.0**-7, min=2.0**-24)
    elif model.dtype == torch.bfloat16:
        bits = main.view(torch.int32)
        middle = (bits & 0xFFFF) == _BF16_HALF
        wrong &= ~(middle & ((bits - model.float().view(torch.int32)).abs() == _BF16_HALF))
    return wrong & ~(main.isnan() & model.isnan())


def _scale_inv(parameter: Any) -> float:
    """The factor from the stored numbers to the weights; the largest, where blocks have their own."""
    factor = getattr(parameter, "_scale_inv", None)
    if factor is not None:
        return float(factor.max())
    # Blocks: their largest weight becomes 448, or with powers of two for factors, between 224 and 448.
    return float(parameter.dequantize(dtype=torch.float32).abs().max()) / 224


@torch.no_grad()
def refresh_model(model: list[Any], optimizer: Any) -> None:
    """Rounds the main weights to the model's weights and shares them, as after each step; a collective."""
    for owner in getattr(optimizer, "chained_optimizers", [optimizer]):
        if owner.config.reuse_grad_buf_for_mxfp8_param_ag:
            owner._copy_main_params_to_param_buffer()
        else:
            owner._copy_main_params_to_model_params()
    for chunk in model:
        chunk.start_param_sync(force_sync=True)
