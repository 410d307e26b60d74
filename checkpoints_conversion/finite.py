"""Looks at weights as they are streamed: values that are not finite are refused, zeros where none belong are
reported.

Its cost is one pass over numbers that are in memory anyway (largest and smallest value; some 6 GB a second on
a core, against 1.4 for the SHA-256 that an import takes of the same bytes twice).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.dtypes import dtype_name

__all__ = ["Scan"]


@dataclass
class _Found:
    """Of one parameter: values that are not finite, the first of them, rows, and rows of zeros only."""

    count: int = 0
    first: tuple[int, ...] | None = None
    value: float = 0.0
    cast: str | None = None
    rows: int = 0
    zero_rows: int = 0
    first_zero: int | None = None


def _zero_rows(block: torch.Tensor) -> torch.Tensor:
    """Which rows consist of zeros; as integers, which takes a tenth of the time."""
    flat = block.reshape(len(block), -1)
    bits = flat.view(torch.int16 if flat.element_size() == 2 else torch.int32)
    return (bits.amax(1) == 0) & (bits.amin(1) == 0)


@dataclass
class Scan:
    """What is odd about the values of parameters. Blocks may come from several threads.

    Args:
        allowed: parameters that may hold values that are not finite.
        by_row: parameters of which single rows count, such as the embedding.
    """

    allowed: Collection[str] = ()
    by_row: Collection[str] = ()
    _found: dict[str, _Found] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, first: int, block: torch.Tensor, stored: torch.Tensor) -> None:
        """Takes in rows of a parameter.

        Args:
            name: the parameter.
            first: number of its first row here.
            block: the rows, as they are written.
            stored: the rows, before a cast.
        """
        found = _Found(rows=len(block))
        low, high = (bound.item() for bound in torch.aminmax(block)) if block.numel() else (1.0, 1.0)
        if not (abs(low) < torch.inf and abs(high) < torch.inf):  # a NaN makes both NaN
            wrong = ~torch.isfinite(block)
            # `nonzero` would list all of them, in sixteen bytes each.
            place = [int(i) for i in torch.unravel_index(wrong.view(torch.uint8).argmax(), wrong.shape)]
            found.count, found.value = int(wrong.sum()), block[tuple(place)].item()
            found.first = (first + place[0], *place[1:])
            if torch.isfinite(stored[tuple(place)]):
                found.cast = dtype_name(block.dtype)
        if low == high == 0.0:
            found.zero_rows, found.first_zero = len(block), first
        elif name in self.by_row and (zero := _zero_rows(block)).any():
            found.zero_rows, found.first_zero = int(zero.sum()), first + int(zero.nonzero()[0])
        with self._lock:
            self._merge(self._found.setdefault(name, _Found()), found)

    @staticmethod
    def _merge(whole: _Found, part: _Found) -> None:
        if part.first is not None and (whole.first is None or part.first < whole.first):
            whole.first, whole.value, whole.cast = part.first, part.value, part.cast
        if part.first_zero is not None and (whole.first_zero is None or part.first_zero < whole.first_zero):
            whole.first_zero = part.first_zero
        whole.count += part.count
        whole.rows += part.rows
        whole.zero_rows += part.zero_rows

    def check(self, folder: Any) -> None:
        """Refuses values that are not finite, once all parameters are in.

        Raises:
            UserError: names each parameter, how many values, and the first of them.
        """
        wrong = [name for name, found in self._found.items() if found.count and name not in self.allowed]
        if not wrong:
            return
        texts = [self._text(name, self._found[name]) for name in wrong[:3]]
        more = f"; and {len(wrong) - 3} more parameters" if len(wrong) > 3 else ""
        cast = all(self._found[name].cast for name in wrong)
        fix = (
            "choose another --dtype"
            if cast
            else "get the weights from their source, or pass --allow-nonfinite with the names if they are meant"
        )
        raise UserError(f"{folder}: {'; '.join(texts)}{more}; {fix}")

    @staticmethod
    def _text(name: str, found: _Found) -> str:
        cast = f" after the cast to {found.cast}" if found.cast else ""
        return (
            f"parameter {name} has {found.count} values that are not finite{cast}, the first ({found.value}) at "
            f"{list(found.first or ())}"
        )

    def nonfinite(self) -> Mapping[str, dict[str, Any]]:
        """Per allowed parameter with such values: `count` and `first` (its index)."""
        return {
            name: {"count": found.count, "first": list(found.first or ())}
            for name, found in self._found.items()
            if found.count
        }

    def zeros(self) -> Mapping[str, dict[str, int]]:
        """Per parameter of zeros only, or with rows of zeros where rows count: `rows`, `zero_rows`, and the
        `first` of these."""
        return {
            name: {"rows": found.rows, "zero_rows": found.zero_rows, "first": found.first_zero or 0}
            for name, found in self._found.items()
            if found.zero_rows and (found.zero_rows == found.rows or name in self.by_row)
        }

    def warnings(self) -> list[str]:
        """What a person should look at, one line each."""
        lines = []
        for name, zero in self.zeros().items():
            if zero["zero_rows"] == zero["rows"]:
                lines.append(f"parameter {name} consists of zeros: is it meant, or was the file damaged?")
            else:
                lines.append(
                    f"parameter {name}: {zero['zero_rows']} of {zero['rows']} rows are zeros, the first {zero['first']}: "
                    "token ids without training, or a damaged file?"
                )
        return [*lines, *(self._text(name, found) for name, found in self._found.items() if found.count)]
