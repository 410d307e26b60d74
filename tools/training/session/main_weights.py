"""Main weights at the start: bit for bit those of the checkpoint, in every precision, or no step is trained.

Answers `load_checkpoint` (after it: takes over main weights where Megatron would make them from the model's rounded
ones) and `train` (before the first step: compares all of them with the checkpoint).

Started from weights alone, Megatron makes main weights of the model's weights: rounded to BF16 (0.2 % off, value by
value, where the checkpoint is more exact), or to FP8 (2.6 %). Its `--load-main-params-from-ckpt` takes BF16 copies,
serves current scaling only (with other scalings its loader has rounded them to FP8 by then), and no optimizer but the
distributed one; so it stays off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, mpu
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.optimizer.cpu_offloading.hybrid_optimizer import HybridDeviceOptimizer
from megatron.core.utils import unwrap_model
from megatron.training import get_args

from emma.base.errors import UserError
from emma.tools.runs.checkpoints import checkpoint_folder, tracked_step
from emma.tools.runs.run_folder import Launch
from emma.tools.training.main_weights import (
    MainWeight,
    first_different,
    first_misrounded,
    main_weights,
    pieces,
    refresh_model,
)
from emma.tools.training.stored_weights import Piece, StoredWeights

__all__ = ["MainWeights", "stop_all"]


class MainWeights:
    """Acts where the launch starts from a checkpoint."""

    def __init__(self, launch: Launch) -> None:
        self.mode = launch.load.mode
        if launch.load.folder is not None:
            folder = Path(launch.load.folder)
            step = launch.load.step if launch.load.step is not None else tracked_step(folder)
            self.folder = checkpoint_folder(folder, step or 0)

    def load_checkpoint(
        self, original: Callable[..., Any], model: list[Any], optimizer: Any, *rest: Any, **named: Any
    ) -> Any:
        """Loads, takes main weights from the checkpoint, and rounds them to the model's where those are kept otherwise
        than in BF16 or FP32, or by Transformer Engine's optimizer.

        Raises:
            UserError: the main weights are not those that the checkpoint's model weights were rounded from.
        """
        result = original(model, optimizer, *rest, **named)
        weights = main_weights(model, optimizer)
        fault = None
        try:
            if self.mode == "weights":
                self._fill(weights, model, optimizer)
            fault = self._unlike_the_model(weights)
        except UserError as error:
            fault = str(error)
        stop_all(fault)
        # All ranks decide alike: by their parameters, not by their shares.
        in_fp8 = any(is_float8tensor(parameter) for chunk in model for parameter in chunk.parameters())
        if in_fp8 or get_args().use_precision_aware_optimizer:
            refresh_model(model, optimizer)
        return result

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: list[Any],
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Compares all main weights with the checkpoint's, then trains.

        Raises:
            UserError: one of them has another bit.
        """
        if self.mode != "scratch":
            self.compare(model, optimizer)
        elif get_args().reuse_grad_buf_for_mxfp8_param_ag:
            # Else a validation before the first step would gather an empty buffer as the weights.
            refresh_model(model, optimizer)
        return original(forward_step, model, optimizer, *rest, **named)

    def compare(self, model: list[Any], optimizer: Any) -> None:
        """Stops all ranks where a main weight is not the checkpoint's; a collective."""
        begun, fault, values, read = time.perf_counter(), None, 0, 0
        try:
            stored = StoredWeights(self.folder)
            for weight, start, found in self._stored(stored, main_weights(model, optimizer), model):
                values += found.numel()
                fault = fault or _first_difference(weight, start, found)
            read = stored.bytes
        except UserError as error:
            fault = str(error)
        stop_all(fault and f"{fault}. Nothing was trained. Fix: start again; if it happens again, report it")
        facts = torch.tensor([values, read], dtype=torch.float64, device="cuda")
        torch.distributed.all_reduce(facts)
        slowest = torch.tensor([time.perf_counter() - begun, read], dtype=torch.float64, device="cuda")
        torch.distributed.all_reduce(slowest, op=torch.distributed.ReduceOp.MAX)
        if torch.distributed.get_rank() == 0:
            print(self._verdict(int(facts[0]), int(facts[1]), *slowest.tolist()), flush=True)

    def _verdict(self, values: int, read: int, seconds: float, most: float) -> str:
        if not values:
            return f"main weights: {self.folder} does not store them by parameter, so they were not compared"
        return (
            f"main weights: {values:,} values equal {self.folder} bit for bit "
            f"({read:,} bytes read by all ranks, {int(most):,} by one at most, in {seconds:.2f} s)"
        )

    def _fill(self, weights: list[MainWeight], model: list[Any], optimizer: Any) -> None:
        """Main weights from the checkpoint's own tensors; each rank reads its share."""
        for weight, start, found in self._stored(StoredWeights(self.folder), weights, model):
            # What the checkpoint lacks, padding of the vocabulary, stays as the model has it.
            whole = weight.states()["param"].clone()
            whole[start : start + found.numel()] = found.to(whole.device)
            weight.fill(whole)

    def _stored(
        self, stored: StoredWeights, weights: list[MainWeight], model: list[Any]
    ) -> Iterator[tuple[MainWeight, int, torch.Tensor]]:
        """What the checkpoint holds of each share: the share, the first element in it, and the values, FP32.

        Raises:
            UserError: the checkpoint does not hold them.
        """
        common = dist_checkpointing.load_common_state_dict(str(self.folder))
        metadata = dist_checkpointing.load_content_metadata(preloaded_state_dict=common) or {}
        metadata["dp_cp_group"] = mpu.get_data_parallel_group(with_context_parallel=True)
        rounded = getattr(common.get("args"), "fp8_param_gather", False)
        places: dict[Any, list[Piece]] = {}
        for chunk in unwrap_model(model):
            places |= pieces(chunk.sharded_state_dict(metadata=metadata))
        for weight in weights:
            if isinstance(getattr(weight.owner, "optimizer", None), HybridDeviceOptimizer):
                continue
            for piece in places[weight.parameter]:
                key = self._key(stored, piece, rounded)
                begin, end = max(weight.start, piece.start), weight.start + weight.size
                if key is not None and begin < end:
                    found = stored.read(key, piece, begin - piece.start, end - piece.start)
                    if found.numel():
                        yield weight, begin - weight.start, found

    def _key(self, stored: StoredWeights, piece: Piece, rounded: bool) -> str | None:
        """The tensor to take main weights from; None where the checkpoint keeps them by bucket."""
        main = stored.main_key(piece)
        if main is not None or (self.mode != "weights" and not stored.in_fp32(piece.key)):
            return main
        if rounded:
            raise UserError(
                f"{self.folder} comes from a run with precision.fp8_params, so its model weights are rounded to FP8, and "
                f"it holds no main weights by parameter (no optimizer.state.param.{piece.key}). Nothing was trained. "
                "Fix: start from a checkpoint that was saved with checkpoint.reshardable"
            )
        return piece.key

    def _unlike_the_model(self, weights: list[MainWeight]) -> str | None:
        for weight in weights:
            main = weight.states()["param"]
            if wrong := first_misrounded(weight.parameter, weight.start, main, weight.exact):
                count, at = wrong
                return (
                    f"{self.folder}: {count} of {weight.size} main weights of {weight.name} do not round to the model's "
                    f"weights; the first is number {weight.start + at} of rank {_rank()}'s, {main[at].item():.9g}. The "
                    "optimizer state is not this model's (Megatron without NVIDIA/Megatron-LM#5077 saves such states "
                    "where gradient buckets are padded). Nothing was trained. Fix: start from another checkpoint, or "
                    "export the model's weights (`emma convert megatron-to-hf --weights model`) and import those"
                )
        return None


def _first_difference(weight: MainWeight, start: int, found: torch.Tensor) -> str | None:
    main = weight.states()["param"][start : start + found.numel()]
    if weight.exact:
        wrong = first_different(main, found)
    else:
        # FP16 with one factor for the tensor, whose largest number becomes half of the largest in FP16.
        found = found.to(main.device)
        spacing = torch.clamp(found.abs() * 2.0**-10, min=float(found.abs().max()) * 2.0**-38)
        far = ~((main - found).abs() <= spacing)
        wrong = (int(far.sum()), int(far.nonzero()[0])) if far.any() else None
    if wrong is None:
        return None
    count, at = wrong
    return (
        f"rank {_rank()}: {count} of {found.numel()} main weights of {weight.name} are not the checkpoint's; the first "
        f"is number {weight.start + start + at} of the rank's parameter: {main[at].item():.9g} instead of "
        f"{found[at].item():.9g}"
    )


def _rank() -> int:
    return torch.distributed.get_rank()


def stop_all(fault: str | None) -> None:
    """Stops all ranks if one has a fault; a collective.

    Raises:
        UserError: the fault of the first rank that has one.
    """
    any_fault = torch.tensor([float(fault is not None)], device="cuda")
    torch.distributed.all_reduce(any_fault, op=torch.distributed.ReduceOp.MAX)
    if any_fault.item():
        faults: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(faults, fault)
        raise UserError(next(fault for fault in faults if fault is not None))
