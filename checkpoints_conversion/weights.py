"""One view of a model's parameters, whatever format they are stored in: transformers' names, slices on
demand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.checkpoint import Checkpoint, find_checkpoint, is_checkpoint
from emma.checkpoints_conversion.huggingface_weights import HuggingFaceWeights, Rows
from emma.checkpoints_conversion.parameters import (
    EMBEDDING,
    OUTPUT,
    global_sizes,
    locations,
    parameter_shapes,
    split_qkv,
)
from emma.checkpoints_conversion.slicing import row_blocks
from emma.checkpoints_conversion.torch_dist_reader import TorchDistReader
from emma.checkpoints_conversion.torch_ranks_reader import TorchRanksReader, holds_ranks
from emma.recipes.schema.model import Shape
from emma.tools.inspection.checkpoints import check_checkpoint

__all__ = [
    "AveragedWeights",
    "HuggingFaceWeights",
    "MegatronWeights",
    "Rows",
    "Weights",
    "WeightsKind",
    "blocks",
    "open_weights",
    "rounded_alike",
]

# `auto`: the optimizer's where the run kept its model's weights in FP8, else the model's.
WeightsKind = Literal["auto", "model", "optimizer"]
# Prefixes of main weights: the distributed optimizer's fully reshardable layout, and the plain mixed-precision
# optimizer's.
_MAIN_PARAMETERS = ("optimizer.state.param.", "optimizer.state.fp32_param.")


class Weights(Protocol):
    """Parameters under transformers' names.

    Attributes:
        layout: `huggingface`, or `megatron` for weights that also lend Megatron's global tensors (`open_stored`).
    """

    layout: Literal["huggingface", "megatron"]

    @property
    def folder(self) -> Path:
        """Their folder."""

    @property
    def shape(self) -> Shape:
        """The model."""

    def dtype(self, name: str) -> torch.dtype:
        """Type in which a parameter is stored."""

    def open(self, name: str, rows: Rows | None = None) -> AbstractContextManager[torch.Tensor]:
        """Lends a parameter, or some of its rows; don't write to it or use it after the block."""


class MegatronWeights:
    """The weights of a Megatron checkpoint, checked against the shape of its model.

    Args:
        checkpoint: the checkpoint.
        kind: `model` for the weights of the forward pass, `optimizer` for the optimizer's FP32 main weights,
            `auto` for the latter where the run kept the former in FP8.

    Attributes:
        kind: `model` or `optimizer`.

    Raises:
        UserError: tensors are missing, superfluous, or of other sizes, or the optimizer's state is not fully
            reshardable.
    """

    layout: Literal["huggingface", "megatron"] = "megatron"

    def __init__(self, checkpoint: Checkpoint, kind: WeightsKind = "auto") -> None:
        self.checkpoint = checkpoint
        self.folder = checkpoint.folder
        check_checkpoint(self.folder)
        self.shape = checkpoint.shape
        self.reader: TorchDistReader | TorchRanksReader = (
            TorchRanksReader(checkpoint.folder, checkpoint.shape)
            if holds_ranks(checkpoint.folder)
            else TorchDistReader(checkpoint.folder)
        )
        self._main = next((p for p in _MAIN_PARAMETERS if p + EMBEDDING in self.reader.keys), None)
        self._locations = locations(self.shape)
        self.kind: Literal["model", "optimizer"] = "optimizer" if checkpoint.fp8_params else "model"
        if kind != "auto":
            self.kind = kind
        if self.kind == "optimizer" and self._main is None:
            self._refuse_optimizer(chosen=kind != "auto")
        self._check_all()
        if extra := sorted(self._model_keys() - global_sizes(self.shape).keys()):
            raise UserError(
                f"{self.folder}: tensor {extra[0]} does not belong to the model in {checkpoint.description} "
                f"({len(extra)} such); exporting would lose it"
            )

    @property
    def _prefix(self) -> str:
        return "" if self.kind == "model" or self._main is None else self._main

    def _model_keys(self) -> set[str]:
        return {key for key in self.reader.keys if not key.startswith("optimizer.")}

    def other_kind(self) -> MegatronWeights | None:
        """The checkpoint's other set of weights: the model's beside the optimizer's, and the optimizer's beside
        a model's in FP8; None if there is none, or if both are the same numbers."""
        if self.kind == "model" and (self._main is None or not self.checkpoint.fp8_params):
            return None
        other = copy.copy(self)
        other.kind = "model" if self.kind == "optimizer" else "optimizer"
        try:
            other._check_all()
        except UserError:
            if self.kind == "optimizer":
                raise
            return None  # the model's weights can be had without the optimizer's
        return other

    def _refuse_optimizer(self, *, chosen: bool) -> NoReturn:
        why = (
            ""
            if chosen
            else "; its run kept the model's weights in FP8 (precision.fp8_params), so only the optimizer's main "
            "weights are the trained model"
        )
        model = "export --weights model" + ("" if chosen else ", which releases the weights rounded to FP8")
        if isinstance(self.reader, TorchRanksReader):
            raise UserError(
                f"{self.folder}: the `torch` format does not say which of the optimizer's values belong to which "
                f"weight{why}; {model}"
            )
        if any(key.startswith("optimizer.") for key in self.reader.keys):
            raise UserError(
                f"{self.folder}: the optimizer's state is not in the fully reshardable layout, so its FP32 weights "
                f"cannot be separated{why}; train with checkpoint.reshardable: true, or {model}"
            )
        raise UserError(f"{self.folder}: contains no optimizer state{why}; use another step, or {model}")

    def _check_all(self) -> None:
        for key, sizes in global_sizes(self.shape).items():
            self._check(key, sizes, self.checkpoint.description)

    def _check(self, key: str, sizes: Sequence[int], description: Path) -> None:
        if self._prefix + key not in self.reader.keys:
            raise UserError(
                f"{self.folder}: tensor {self._prefix + key} is missing, but {description} implies it"
            )
        found = self.reader.size(self._prefix + key)
        wanted = tuple(sizes)
        if key in (EMBEDDING, OUTPUT):  # the number of padding rows depends on the layout that wrote them
            wanted = (max(found[0], self.shape.vocab_size), *sizes[1:])
        if found != wanted:
            raise UserError(
                f"{self.folder}: tensor {self._prefix + key} has sizes {list(found)}, but {description} implies "
                f"{list(wanted)}; the checkpoint holds another model"
            )

    def dtype(self, name: str) -> torch.dtype:
        return self.reader.dtype(self._prefix + self._locations[name].key)

    def open_stored(
        self, key: str, offsets: Sequence[int], sizes: Sequence[int]
    ) -> AbstractContextManager[torch.Tensor]:
        """Lends a slice of one of Megatron's global tensors, as stored."""
        return self.reader.open(self._prefix + key, offsets, sizes)

    @contextmanager
    def open(self, name: str, rows: Rows | None = None) -> Iterator[torch.Tensor]:
        place = self._locations[name]
        whole = parameter_shapes(self.shape)[name]
        if not whole:  # a single value
            with self.open_stored(place.key, place.offsets, place.sizes) as stored:
                yield stored.reshape(())
            return
        first, count = rows or (0, whole[0])
        if place.part is not None:
            with self.open_stored(place.key, place.offsets, place.sizes) as stored:
                yield split_qkv(self.shape, stored, place.part)[first : first + count]
            return
        axis = len(place.sizes) - len(whole)  # after the layer axis, if there is one
        offsets = tuple(start + first * (i == axis) for i, start in enumerate(place.offsets))
        sizes = tuple(count if i == axis else size for i, size in enumerate(place.sizes))
        with self.open_stored(place.key, offsets, sizes) as stored:
            yield stored.reshape(count, *whole[1:])


def open_weights(
    folder: Path, step: int | None = None, kind: WeightsKind = "auto", *, text_only: bool = False
) -> Weights:
    """Opens a folder in either format; `text_only` takes the text model out of a Hugging Face model of images and text.

    Raises:
        UserError: it is in neither format, or its weights are incomplete.
    """
    if is_checkpoint(folder):
        return MegatronWeights(find_checkpoint(folder, step), kind)
    if (folder / "config.json").is_file():
        return HuggingFaceWeights(folder, text_only=text_only)
    raise UserError(
        f"{folder}: neither a Hugging Face model (config.json) nor a Megatron checkpoint (iter_NNNNNNN) nor a run"
    )


def blocks(
    sources: Sequence[Weights],
    name: str,
    dtype: torch.dtype,
    seen: Callable[[int, str, Rows, torch.Tensor], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Yields a parameter in blocks of rows, so that memory use does not depend on its size.

    Args:
        sources: where to read it; for several sources, yields the mean, computed in FP32.
        name: the parameter.
        dtype: type of the blocks.
        seen: called with the number of a source, the name, rows, and these as stored, before they are used.
    """
    for rows in row_blocks(parameter_shapes(sources[0].shape)[name]):
        with ExitStack() as stack:
            parts = [stack.enter_context(source.open(name, rows)) for source in sources]
            for number, part in enumerate(parts if seen else ()):
                seen(number, name, rows, part)  # type: ignore[misc]
            yield _mean(parts, dtype).contiguous()


def _mean(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Mean in FP32, rounded once."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return (total / len(parts)).to(dtype)


class AveragedWeights:
    """The mean of several checkpoints' weights, computed in FP32, in their common type.

    Args:
        sources: two or more checkpoints of the same shape.
    """

    layout: Literal["huggingface", "megatron"] = "megatron"

    def __init__(self, sources: Sequence[MegatronWeights]) -> None:
        self.sources = list(sources)
        self.folder, self.shape = sources[-1].folder, sources[-1].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.sources[0].dtype(name)

    @contextmanager
    def open(self, name: str, rows: Rows | None = None) -> Iterator[torch.Tensor]:
        with ExitStack() as stack:
            parts = [stack.enter_context(source.open(name, rows)) for source in self.sources]
            yield _mean(parts, self.dtype(name))

    @contextmanager
    def open_stored(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        with ExitStack() as stack:
            parts = [stack.enter_context(source.open_stored(key, offsets, sizes)) for source in self.sources]
            yield _mean(parts, parts[0].dtype)


class RoundedWeights:
    """Weights rounded to the types of another model's, where those are narrower.

    Args:
        source: the weights.
        other: the other model, of the same shape.
    """

    def __init__(self, source: Any, other: Weights) -> None:
        self._source = source
        self.layout, self.folder, self.shape = source.layout, source.folder, source.shape
        self._dtypes = {
            name: min((source.dtype(name), other.dtype(name)), key=lambda kind: (kind.itemsize, str(kind)))
            for name in parameter_shapes(self.shape)
        }
        self._stored_dtypes = {place.key: self._dtypes[name] for name, place in locations(self.shape).items()}

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    @contextmanager
    def open(self, name: str, rows: Rows | None = None) -> Iterator[torch.Tensor]:
        with self._source.open(name, rows) as tensor:
            yield tensor.to(self._dtypes[name])

    @contextmanager
    def open_stored(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        with self._source.open_stored(key, offsets, sizes) as tensor:
            yield tensor.to(self._stored_dtypes[key])


def rounded_alike(a: Weights, b: Weights) -> tuple[Weights, Weights]:
    """Two models of the same shape, each rounded to the narrower type of the two; unchanged where the types
    are the same."""
    if all(a.dtype(name) == b.dtype(name) for name in parameter_shapes(a.shape)):
        return a, b
    return RoundedWeights(a, b), RoundedWeights(b, a)
