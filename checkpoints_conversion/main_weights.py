"""How far a checkpoint's two sets of weights are apart: those of the forward pass, and the optimizer's main
weights, from which the others are rounded.

With weights kept in FP8 only the main weights are the model that training has reached; those of the forward
pass are up to 6 % off, value by value. In every other format both are the same model, and main weights that
do not round to the model's weights were saved wrongly.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emma.base.errors import CheckFailedError
from emma.checkpoints_conversion.parameters import matrices, parameter_shapes
from emma.checkpoints_conversion.slicing import row_blocks
from emma.checkpoints_conversion.weights import MegatronWeights, Rows

__all__ = ["Distance", "release_record", "release_sentence"]

# The largest relative error of rounding to E4M3 (3 bits after the point) and to BF16 (7): half a unit in the
# last place. A parameter as a whole stays below it, whatever the scaling factor; unrelated weights are near 1.4.
_FP8_LIMIT = 2.0**-4
_BF16_LIMIT = 2.0**-8


@dataclass
class _Sum:
    """What is known of some values. `squares` and `delta_squares` are sums over main weights and differences."""

    values: int = 0
    not_rounded: int = 0
    largest: float = 0.0
    squares: float = 0.0
    delta_squares: float = 0.0

    def add(self, other: _Sum) -> None:
        self.values += other.values
        self.not_rounded += other.not_rounded
        self.largest = max(self.largest, other.largest)
        self.squares += other.squares
        self.delta_squares += other.delta_squares

    @property
    def relative_rms(self) -> float:
        if self.delta_squares == 0:
            return 0.0
        return math.sqrt(self.delta_squares / self.squares) if self.squares else math.inf

    def as_dict(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "not_rounded": self.not_rounded,
            "max_abs_delta": self.largest,
            "relative_rms": self.relative_rms,
        }


def _sum(main: torch.Tensor, model: torch.Tensor) -> _Sum:
    whole = main.float()
    delta = whole - model.float()
    rounded = main.to(model.dtype)
    unlike = rounded != model
    if unlike.any():
        # Optimizers that store what rounding leaves off break ties the other way; the distance is the same.
        unlike &= (whole - rounded.float()).abs() != delta.abs()
    return _Sum(
        main.numel(),
        int(unlike.sum()),
        delta.abs().nan_to_num(math.inf).max().item(),
        whole.square().sum().item(),
        delta.square().sum().item(),
    )


def _kind(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `q_proj`."""
    return name.split(".")[-2]


class Distance:
    """Compares the released weights of checkpoints with the other set, block by block, from any thread.

    Args:
        sources: the released weights, of one kind.
    """

    def __init__(self, sources: Sequence[MegatronWeights]) -> None:
        self._sources = sources
        self._others = [source.other_kind() for source in sources]
        self._sums: dict[tuple[int, str], _Sum] = {}
        self._lock = threading.Lock()

    def add(self, index: int, name: str, rows: Rows, block: torch.Tensor) -> None:
        """Compares some rows of a parameter of the source number `index`; does nothing if it has one set only."""
        other = self._others[index]
        if other is None:
            return
        with other.open(name, rows) as stored:
            pair = (block, stored) if self._sources[index].kind == "optimizer" else (stored, block)
            found = _sum(*pair)
        with self._lock:
            self._sums.setdefault((index, name), _Sum()).add(found)

    def measure(self) -> Distance:
        """Reads all parameters; returns itself."""
        for index, source in enumerate(self._sources):
            if self._others[index] is not None:
                for name, sizes in parameter_shapes(source.shape).items():
                    for rows in row_blocks(sizes):
                        with source.open(name, rows) as block:
                            self.add(index, name, rows, block)
        return self

    def faults(self) -> list[str]:
        """Parameters whose main weights are not those that the model's weights were rounded from."""
        faults = []
        multiplied = [matrices(source.shape) for source in self._sources]
        for (index, name), found in self._sums.items():
            source = self._sources[index]
            allowed = -1.0 if source.checkpoint.exact_main else _BF16_LIMIT  # exact: no value may differ
            if source.checkpoint.fp8_params and name in multiplied[index]:
                allowed = _FP8_LIMIT
            if found.not_rounded and not found.relative_rms <= allowed:
                faults.append(
                    f"{source.folder}: {name}: {found.not_rounded} of {found.values} main weights do not round to the "
                    f"model's weights (relative RMS {found.relative_rms:.2g})"
                )
        return faults

    def as_dict(self) -> dict[str, Any] | None:
        """Totals over all sources, then by kind of parameter; None if nothing was compared."""
        if not self._sums:
            return None
        kinds: dict[str, _Sum] = {}
        total = _Sum()
        for (_, name), found in self._sums.items():
            kinds.setdefault(_kind(name), _Sum()).add(found)
            total.add(found)
        return {**total.as_dict(), "kinds": {kind: found.as_dict() for kind, found in kinds.items()}}


def release_record(sources: Sequence[MegatronWeights], distance: Distance) -> dict[str, Any]:
    """Which weights of checkpoints are released, and how far they are from the other set.

    Args:
        sources: the released weights, of one kind.
        distance: their comparison, complete.

    Returns:
        `weights` (`model` or `optimizer`), `fp8_params` (whether the model's are rounded to FP8), and
        `distance` (None if the checkpoints hold one set, or both need not be read): `values`, `not_rounded`
        (values of the main weights that do not round to the model's), `max_abs_delta`, `relative_rms` (of the
        difference, to the main weights'), and the same by kind of parameter (`kinds`).

    Raises:
        CheckFailedError: main weights are to be released, but do not round to the model's: the optimizer's state is
            not this model's.
    """
    if sources[0].kind == "optimizer" and (faults := distance.faults()):
        raise CheckFailedError(
            f"{faults[0]} ({len(faults)} such parameters); the optimizer's state was saved wrongly "
            "(NVIDIA/Megatron-LM#5077 does that where gradient buckets are padded): use another step, or export "
            "--weights model"
        )
    return {
        "weights": sources[0].kind,
        "fp8_params": any(source.checkpoint.fp8_params for source in sources),
        "distance": distance.as_dict(),
    }


def release_sentence(record: Mapping[str, Any]) -> str:
    """A `release_record` in words."""
    main, distance = record["weights"] == "optimizer", record["distance"]
    text = "the optimizer's main weights" if main else "those of the forward pass"
    if record["fp8_params"]:
        text += (
            ", since the run keeps the model's in FP8" if main else ", rounded to FP8 (precision.fp8_params)"
        )
    if distance is not None:
        text += (
            f"; from {'the model' if main else 'the optimizer'}'s: max |Δ| {distance['max_abs_delta']:.3g}, "
            f"relative RMS {distance['relative_rms']:.2%}"
        )
    return text
