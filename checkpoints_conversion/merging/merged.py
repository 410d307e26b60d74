"""The weights of a merge, computed as they are read: they look like any other model's (`Weights`), so that what writes,
compares and verifies models takes them as they are."""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from emma.base.errors import UserError
from emma.base.threads import in_order
from emma.checkpoints_conversion.finite import Scan
from emma.checkpoints_conversion.merging.arithmetic import Sparsify, arc, at_least, average, kept, task
from emma.checkpoints_conversion.merging.parents import Family, Member
from emma.checkpoints_conversion.merging.statistics import (
    arc_factors,
    magnitude_ratio,
    trim_threshold,
)
from emma.checkpoints_conversion.parameters import EMBEDDING, OUTPUT, name_of, parameter_shapes
from emma.checkpoints_conversion.safetensors_files import tensor_bytes
from emma.checkpoints_conversion.weights import HuggingFaceWeights, Rows

__all__ = ["MergedWeights"]

# Values in a block: the blocks of three models and what is made of them stay in a core's caches. A slice of Megatron's
# fused query, key and value costs a pass over all three, so there blocks are larger.
_BLOCK = 1 << 20
_MEGATRON_BLOCK = 1 << 23
_FAR_ROWS = 0.01
_NO_ROW = 1e-6  # of the mean square of a row: rows that no text reaches


@dataclass
class _Ledger:
    """What is known of one parameter after its first `rows` rows, taken in once and in order."""

    hashes: list[Any]
    rows: int = 0
    distances: list[list[float]] = field(default_factory=list)
    """Per model: squares of its difference from the reference, and of the reference."""
    row_squares: torch.Tensor | None = None
    """The same of each row that all models share, [models, rows], of an embedding."""
    lock: Any = field(default_factory=threading.Lock)


class MergedWeights:
    """The result of a merge, block by block, in memory that does not depend on the models' size.

    While a parameter is read from its first row to its last, its bytes in each model are hashed, its values looked at, and
    its distance from the base (or the first model) is taken; `finish` does so for what was not read.

    Args:
        family: the models.
    """

    layout: Literal["huggingface", "megatron"] = "huggingface"

    def __init__(self, family: Family) -> None:
        self.family, self.recipe = family, family.recipe
        self.folder, self.shape = family.companion.folder, family.shape
        self.sizes = parameter_shapes(self.shape)
        self.matrices = {name_of(self.shape, EMBEDDING), name_of(self.shape, OUTPUT)}
        self._block = _BLOCK if all(m.checkpoint is None for m in family.members) else _MEGATRON_BLOCK
        self._weights = torch.tensor([model.weight for model in family.models], dtype=torch.float32)
        self._plans: dict[str, Any] = {}
        self._plan_locks = {name: threading.Lock() for name in self.sizes}
        self._ledgers = {name: _Ledger([hashlib.sha256() for _ in family.members]) for name in self.sizes}
        self._scan, self._scans = Scan(), {member.label: Scan() for member in family.members}
        # One thread a model, so that its blocks are hashed in their order.
        self._hashers = [ThreadPoolExecutor(1, "hashes") for _ in family.members]

    def dtype(self, name: str) -> torch.dtype:
        return self.family.dtype(name)

    @contextmanager
    def open(self, name: str, rows: Rows | None = None) -> Iterator[torch.Tensor]:
        sizes = self.sizes[name]
        if not sizes:
            yield self._merged(name, 0, 1).reshape(())
            return
        first, count = rows or (0, sizes[0])
        blocks = list(self._blocks(sizes, first, first + count))
        if len(blocks) == 1:
            yield self._merged(name, *blocks[0])
            return
        whole = torch.empty((count, *sizes[1:]), dtype=self.dtype(name))
        for start, size in blocks:
            whole[start - first : start - first + size] = self._merged(name, start, size)
        yield whole

    def stream(self, name: str) -> Iterator[torch.Tensor]:
        """A whole parameter in blocks of rows. While one is hashed and written, another thread computes the next."""
        sizes = self.sizes[name] or (1,)
        blocks = self._blocks(sizes, 0, sizes[0])
        ahead = 2 if self._block == _BLOCK else 0  # large blocks would take memory
        for block, pending in in_order(lambda rows: self._begun(name, *rows), blocks, 1, ahead=ahead):
            pending.close()
            yield block if self.sizes[name] else block.reshape(())

    def _blocks(self, sizes: Sequence[int], first: int, stop: int) -> Iterator[Rows]:
        """Rows of about `_block` values; a block lies on one side of the last row that all models share."""
        step = max(1, self._block // math.prod(sizes[1:]))
        shared = self.family.vocabulary.shared
        while first < stop:
            end = min(first + step, stop)
            if first < shared < end and self._grows(sizes):
                end = shared
            yield first, end - first
            first = end

    def _grows(self, sizes: Sequence[int]) -> bool:
        vocabulary = self.family.vocabulary
        return vocabulary.shared < vocabulary.rows and tuple(sizes) == (
            vocabulary.rows,
            self.shape.hidden_size,
        )

    def _merged(self, name: str, first: int, count: int) -> torch.Tensor:
        """Some rows of the result, in its type."""
        result, pending = self._begun(name, first, count)
        pending.close()
        return result

    def _begun(self, name: str, first: int, count: int) -> tuple[torch.Tensor, ExitStack]:
        """Some rows of the result, in its type, and what holds the models' rows while these are still hashed: closing it
        waits for that. So the next block can be begun meanwhile."""
        new = name in self.matrices and first >= self.family.vocabulary.shared
        with ExitStack() as stack, self._next_rows(name, first, count) as ledger:
            if ledger is not None:
                stack.callback(self._forget, name, first, count)
            parts = [self._rows(stack, member, name, first, count) for member in self.family.members]
            if ledger is not None:
                for hasher, digest, part in zip(self._hashers, ledger.hashes, parts, strict=True):
                    if part is not None:
                        hashed = hasher.submit(digest.update, tensor_bytes(part.contiguous()))
                        stack.callback(hashed.result)
            if new:
                if ledger is not None:
                    self._look(name, first, parts)
                result = self._new_rows(parts).to(self.dtype(name))
            else:
                # Converted once: arithmetic on mixed types takes several times as long.
                values = [part.to(torch.float32, copy=True) for part in parts if part is not None]
                subtract = torch.Tensor.sub if self.family.base is None else torch.Tensor.sub_
                deltas = [subtract(value, values[0]) for value in values[1:]]
                # Before the differences are made the result of.
                if ledger is not None and not self._measure(ledger, name, first, [values[0], *deltas]):
                    self._look(name, first, parts)
                result = self._combined(name, first, values, deltas).to(self.dtype(name))
            if ledger is not None:
                self._scan.add(name, first, result, result)
            return result, stack.pop_all()

    @contextmanager
    def _next_rows(self, name: str, first: int, count: int) -> Iterator[_Ledger | None]:
        """The parameter's ledger, if these rows follow those that it knows."""
        ledger = self._ledgers[name]
        held = ledger.lock.acquire(blocking=False)
        try:
            if not held or first != ledger.rows:
                yield None
                return
            yield ledger
            ledger.rows += count
        finally:
            if held:
                ledger.lock.release()

    def _look(self, name: str, first: int, parts: Sequence[torch.Tensor | None]) -> None:
        """Looks at the values of each model by itself."""
        for member, part in zip(self.family.members, parts, strict=True):
            if part is not None:
                self._scans[member.label].add(name, first, part, part)

    def _rows(
        self, stack: ExitStack, member: Member, name: str, first: int, count: int
    ) -> torch.Tensor | None:
        """Some rows of a model; None where it has none that mean these tokens."""
        if not self._has(member, name, first):
            return None
        rows = (first, count) if self.sizes[name] else None
        return stack.enter_context(member.weights.open(name, rows)).reshape(count, *self.sizes[name][1:])

    def _has(self, member: Member, name: str, first: int) -> bool:
        """Whether a model has a row that means what it means in the result."""
        return (
            name not in self.matrices or first < self.family.vocabulary.shared or member in self.family.grown
        )

    def _forget(self, name: str, first: int, count: int) -> None:
        """Drops rows that were read for the last time from the kernel's cache: it would have to find new memory for each
        block that follows, which may cost more than its arithmetic, and push out what others read."""
        for member in self.family.members:
            if isinstance(member.weights, HuggingFaceWeights) and self._has(member, name, first):
                member.weights.forget(name, (first, count) if self.sizes[name] else None)

    def _new_rows(self, parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Rows that some models lack: those of the model that has them, or the average of several, by their weights."""
        models = [part for part in parts[-len(self.family.models) :]]
        found = [
            (part, weight) for part, weight in zip(models, self._weights, strict=True) if part is not None
        ]
        if not found:
            return next(part for part in parts if part is not None).float()
        if len(found) == 1:
            return found[0][0].float()
        weights = torch.stack([weight for _, weight in found])
        if abs(float(weights.sum())) < 1e-8:
            weights = torch.ones_like(weights)
        return average([part for part, _ in found], weights, normalize=True)

    def _combined(
        self, name: str, first: int, values: list[torch.Tensor], deltas: list[torch.Tensor]
    ) -> torch.Tensor:
        plan = self._plan(name)
        if self.recipe.method == "linear":
            return average(values, self._weights, self.recipe.normalized)
        if self.recipe.method == "slerp":
            return arc(values[0], values[1], plan)
        return task(
            values[0],
            deltas,
            self._weights,
            first * math.prod(self.sizes[name][1:]),
            sparsify=plan,
            signs=self.recipe.method in ("ties", "dare_ties"),
            normalize=self.recipe.normalized,
            scale=self.recipe.scale,
        )

    def _plan(self, name: str) -> Any:
        """What the method needs to know of a whole parameter, found at its first use."""
        with self._plan_locks[name]:
            if name not in self._plans:
                if self.recipe.method == "slerp":
                    self._plans[name] = arc_factors(lambda: self._pairs(name), self.recipe.t or 0.0)
                else:
                    models = enumerate(self.family.models if self.family.base else ())
                    self._plans[name] = [self._sparsify(name, number, model) for number, model in models]
            return self._plans[name]

    def _sparsify(self, name: str, number: int, model: Member) -> Sparsify | None:
        if self.recipe.method == "task_vector" or model.density >= 1:
            return None
        stream = functools.partial(self._differences, name, model)
        if self.recipe.method == "ties":
            return at_least(trim_threshold(stream, max(1, int(model.density * self._shared_values(name)))))

        def mask(first: int, count: int) -> torch.Tensor:
            return kept(self.recipe.seed, number, name, model.density, first, count)

        factor = 1.0
        if self.recipe.rescale == "l1":
            factor = magnitude_ratio(stream, mask)

        def drop(delta: torch.Tensor, first: int) -> torch.Tensor:
            left = delta * mask(first, delta.numel()).view_as(delta)
            if self.recipe.rescale == "density":
                return left / model.density
            return left * torch.tensor(factor, dtype=torch.float32) if factor != 1 else left

        return drop

    def _shared_values(self, name: str) -> int:
        sizes = self.sizes[name]
        return math.prod(sizes[1:]) * (self._shared(name) if sizes else 1)

    def _shared(self, name: str) -> int:
        """Rows of a parameter that all models have."""
        rows = (self.sizes[name] or (1,))[0]
        return min(rows, self.family.vocabulary.shared) if name in self.matrices else rows

    def _pairs(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, one, other in self._side_by_side(name, *self.family.models):
            yield one, other

    def _differences(self, name: str, model: Member) -> Iterator[tuple[int, torch.Tensor]]:
        if self.family.base is None:
            raise ValueError("a difference needs a base")
        width = math.prod(self.sizes[name][1:])
        for first, base, other in self._side_by_side(name, self.family.base, model):
            yield first * width, other.float() - base.float()

    def _side_by_side(self, name: str, *members: Member) -> Iterator[tuple[Any, ...]]:
        sizes = self.sizes[name] or (1,)
        for first, count in self._blocks(sizes, 0, self._shared(name)):
            with ExitStack() as stack:
                yield first, *(self._rows(stack, member, name, first, count) for member in members)

    def _measure(self, ledger: _Ledger, name: str, first: int, spread: Sequence[torch.Tensor]) -> bool:
        """Distances from the first of the models; False if they are not finite: then some value is not, or is huge."""
        by_row = name in self.matrices
        squares = [_squares(values, by_row) for values in spread]
        if by_row:
            # In one piece: small tensors that stay, between large ones that go, would leave the large ones' memory in pieces.
            if ledger.row_squares is None:
                ledger.row_squares = torch.empty(len(squares), self._shared(name))
            ledger.row_squares[:, first : first + len(squares[0])] = torch.stack(squares)
        totals = [float(each.sum()) for each in squares]
        if len(self.sizes[name]) > 1:
            ledger.distances.append(totals)
        return all(map(math.isfinite, totals))

    def finish(self) -> None:
        """Takes in what was not read, or not in order.

        Raises:
            UserError: values that are not finite; models that lie too far from the base to be its descendants.
        """
        for name, ledger in self._ledgers.items():
            sizes = self.sizes[name] or (1,)
            for first, count in self._blocks(sizes, ledger.rows, sizes[0]):
                self._merged(name, first, count)
            self._hash_unused(name, ledger)
        for member in self.family.members:
            self._scans[member.label].check(member.folder)
        self._scan.check(f"the merge {self.recipe.name}")
        if not self.recipe.allow_distant:
            self._check_distances()

    def _hash_unused(self, name: str, ledger: _Ledger) -> None:
        """Rows of models with fewer tokens, behind their last token."""
        if name not in self.matrices:
            return
        shared = self.family.vocabulary.shared
        for digest, member in zip(ledger.hashes, self.family.members, strict=True):
            stop = member.weights.shape.vocab_size
            if member in self.family.grown or stop <= shared:
                continue
            for first, count in self._blocks((stop, self.shape.hidden_size), shared, stop):
                with member.weights.open(name, (first, count)) as rows:
                    digest.update(tensor_bytes(rows.contiguous()))

    def digests(self) -> dict[str, dict[str, str]]:
        """After `finish`: SHA-256 of each parameter's bytes, by model and transformers' name."""
        hexes = {name: [each.hexdigest() for each in ledger.hashes] for name, ledger in self._ledgers.items()}
        return {
            member.label: {name: found[number] for name, found in hexes.items()}
            for number, member in enumerate(self.family.members)
        }

    def distances(self) -> dict[str, float]:
        """After `finish`: of each model but the first, the norm of its difference from the first, over the first's; all
        matrices together."""
        totals = [0.0] * len(self.family.members)
        for ledger in self._ledgers.values():
            for found in ledger.distances:
                totals = [total + one for total, one in zip(totals, found, strict=True)]
        return {
            member.label: math.sqrt(total / totals[0]) if totals[0] else math.inf
            for member, total in zip(self.family.members[1:], totals[1:], strict=True)
        }

    def _check_distances(self) -> None:
        first = self.family.members[0]
        hint = (
            "Fix: name its base, or models of one base; `allow_distant: true` merges them all the same, if you know that they "
            "belong together"
        )
        for label, distance in self.distances().items():
            if distance >= 1:
                raise UserError(
                    f"{label} is no kin of {first.label}: its weights are {distance:.2f} times {first.label}'s own norm away "
                    f"from them. {hint}"
                )
        for name in sorted(self.matrices):
            squares = self._ledgers[name].row_squares
            assert squares is not None
            own = squares[0]
            real = own > _NO_ROW * own.mean()
            for member, found in zip(self.family.members[1:], squares[1:], strict=True):
                far = (found >= own) & real
                if int(far.sum()) > _FAR_ROWS * int(real.sum()):
                    row = int(far.nonzero()[0])
                    raise UserError(
                        f"{member.label}: {int(far.sum())} of {int(real.sum())} rows of {name} are farther from "
                        f"{first.label}'s than zero is, the first {row}: rows are shifted, or the tokens are others. {hint}"
                    )


def _squares(values: torch.Tensor, by_row: bool) -> torch.Tensor:
    """Sum of squares, [1], or of each row, [rows]."""
    if by_row:
        return torch.linalg.vector_norm(values, dim=1) ** 2  # a quarter of the time of `vecdot`
    flat = values.reshape(-1)
    return torch.dot(flat, flat).reshape(1)
