"""Saved weights: before a checkpoint is written, what it will hold of the optimizer must be what the optimizer has,
and its main weights must round to the model's weights.

Answers `train`: from then on every save asks. Megatron gathers, cuts and names the optimizer's state anew for each
save, and does not look at the result (NVIDIA/Megatron-LM#5077 saved parameters from wrong places for months).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.training import get_args

from emma.tools.training.main_weights import (
    MainWeight,
    first_different,
    first_misrounded,
    main_weights,
    pieces,
)
from emma.tools.training.session.main_weights import stop_all
from emma.tools.training.stored_weights import Piece

__all__ = ["SavedWeights"]

_STATES = "optimizer.state."
_MAIN = ("param", "fp32_param")  # Megatron's two names of main weights


class SavedWeights:
    """Looks at the state of each save before Megatron writes it."""

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: list[Any],
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Trains with an optimizer whose states are checked as they are handed over for saving.

        Raises:
            UserError: no state could be saved in this format.
        """
        if not get_args().dist_ckpt_optim_fully_reshardable:
            stop_all(_only_padding(optimizer))
        build = optimizer.sharded_state_dict

        def checked(sharded: dict[str, Any], is_loading: bool = False, **kinds: Any) -> Any:
            state = build(sharded, is_loading, **kinds)
            if not is_loading:
                self.check(sharded, state, model, optimizer)
            return state

        optimizer.sharded_state_dict = checked
        return original(forward_step, model, optimizer, *rest, **named)

    def check(self, sharded: dict[str, Any], state: Any, model: list[Any], optimizer: Any) -> None:
        """Stops all ranks before the save where a main weight is not the model's, or would not be saved as its own.

        Megatron has gathered the model's weights by then, even where gathering overlaps with the next step.

        Args:
            sharded: the model's sharded state, with the parameters themselves as data.
            state: the optimizer's, as it will be written.
            model: the chunks of this rank.
            optimizer: Megatron's.

        Raises:
            UserError: the first fault.
        """
        begun = time.perf_counter()
        weights = {weight.parameter: weight for weight in main_weights(model, optimizer)}
        faults = (*_unlike_the_model(weights), *_unlike_the_optimizer(weights, pieces(sharded), state))
        stop_all(
            f"rank {torch.distributed.get_rank()}: {faults[0]}. Nothing is written; the checkpoint before is whole. "
            "Fix: start again from it; if it happens again, report it"
            if faults
            else None
        )
        if torch.distributed.get_rank() == 0:
            seconds = time.perf_counter() - begun
            print(f"main weights: what will be saved is right (checked in {seconds:.3f} s)", flush=True)


def _only_padding(optimizer: Any) -> str | None:
    """Why the format by bucket cannot be written: Megatron fails on a share that holds no parameter, at the save."""
    for owner in getattr(optimizer, "chained_optimizers", [optimizer]):
        for ranges in getattr(owner, "gbuf_ranges", ()):
            for number, bucket in enumerate(bucket for buckets in ranges.values() for bucket in buckets):
                if not bucket["param_map"]:
                    return (
                        f"rank {torch.distributed.get_rank()} holds nothing but padding of gradient bucket {number}, "
                        "which a checkpoint by bucket cannot hold. Nothing was trained. Fix: checkpoint.reshardable=true, "
                        "or leave out ddp-pad-buckets-for-high-nccl-busbw"
                    )
    return None


def _unlike_the_model(weights: dict[Any, MainWeight]) -> Iterator[str]:
    for parameter, weight in weights.items():
        main = weight.states()["param"]
        wrong = first_misrounded(parameter, weight.start, main, weight.exact)
        yield from _text(
            f"main weights of {weight.name} do not round to the model's", weight.start, main, wrong
        )


def _unlike_the_optimizer(
    weights: dict[Any, MainWeight], places: dict[Any, list[Piece]], state: Any
) -> Iterator[str]:
    by_key: dict[str, list[tuple[Any, Piece]]] = defaultdict(list)
    for parameter, found in places.items():
        for piece in found:
            by_key[piece.key].append((parameter, piece))
    compared: dict[Any, int] = defaultdict(int)
    for tensor in _tensors(state):
        kind, _, key = tensor.key.removeprefix(_STATES).partition(".")
        parameter, start = _place(by_key[key], tensor)
        if parameter is None:
            yield f"{tensor.key} is at {tuple(tensor.global_offset)} of a tensor, where the rank has no weights"
            continue
        data, weight = tensor.data.detach().reshape(-1), weights.get(parameter)
        if kind in _MAIN:
            # The whole block, whichever rank updates it.
            wrong = first_misrounded(parameter, start, data, weight is None or weight.exact)
            what = f"{tensor.key} would hold main weights that do not round to the model's"
            yield from _text(what, start, data, wrong)
            compared[parameter] += data.numel()
        if weight is not None:
            yield from _changed(weight, start, data, "param" if kind in _MAIN else kind, tensor.key)
    for parameter, weight in weights.items():
        # A share of two rows has a whole one, which it must save, whoever saves the rest of the parameter.
        if compared and not compared[parameter] and weight.size >= 2 * parameter.shape[-1]:
            yield f"main weights of {weight.name} would not be saved"


def _tensors(state: Any) -> Iterator[ShardedTensor]:
    """The sharded tensors of optimizer states that are named after parameters; a format by bucket has none."""
    for entry in nested_values(state):
        if isinstance(entry, ShardedTensorFactory) and entry.key.startswith(_STATES):
            yield from nested_values(entry.build())
        elif isinstance(entry, ShardedTensor) and entry.key.startswith(_STATES):
            yield entry


def _place(candidates: list[tuple[Any, Piece]], tensor: ShardedTensor) -> tuple[Any, int]:
    """The parameter that a block lies in, and the block's first element in it, flat; None if there is none."""
    sizes = (1,) * tensor.prepend_axis_num + tuple(tensor.data.shape)
    sizes = sizes[len(sizes) - len(tensor.global_shape) :]
    for parameter, piece in candidates:
        inside = [a - b for a, b in zip(tensor.global_offset, piece.offsets, strict=True)]
        if all(at >= 0 and at + n <= whole for at, n, whole in zip(inside, sizes, piece.sizes, strict=True)):
            strides = [math.prod(piece.sizes[axis + 1 :]) for axis in range(len(sizes))]
            return parameter, piece.start + sum(
                at * stride for at, stride in zip(inside, strides, strict=True)
            )
    return None, 0


def _changed(weight: MainWeight, start: int, data: torch.Tensor, kind: str, key: str) -> Iterator[str]:
    """Compares what the block and the rank's share have in common, bit for bit."""
    begin, end = max(start, weight.start), min(start + data.numel(), weight.start + weight.size)
    held = weight.states().get(kind)
    if held is None or begin >= end:
        return
    saved = data[begin - start : end - start]
    wrong = first_different(held[begin - weight.start : end - weight.start], saved)
    yield from _text(f"{key} would not hold what the optimizer has", begin, saved, wrong)


def _text(what: str, first: int, values: torch.Tensor, wrong: tuple[int, int] | None) -> Iterator[str]:
    if wrong:
        yield f"{what}: {wrong[0]} of {values.numel()}, from number {first + wrong[1]} on"
