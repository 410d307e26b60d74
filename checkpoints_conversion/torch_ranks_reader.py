"""Reads Megatron's older `torch` checkpoints, one pickled file per rank, as `torch_dist`'s global tensors.

A checkpoint is a folder with `mp_rank_TT[_PPP]/model_optim_rng.pt` for each tensor-parallel (TT) and
pipeline-parallel (PPP) rank: zip archives of a pickle and the tensors' bytes. The pickle is followed, not
executed, and a name in it that no checkpoint needs is refused. Tensors are views of the mapped files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.mapped_file import MappedFile
from emma.checkpoints_conversion.parameters import LAYERS, NORM_KEYS, OUTPUT
from emma.checkpoints_conversion.slicing import covered, overlaps
from emma.recipes.schema.model import Shape
from emma.tools.inspection.archives import Archive, open_archive
from emma.tools.inspection.tensors import TensorForm, tensor_form
from emma.tools.inspection.trees import PickleError, as_mapping

__all__ = ["TorchRanksReader", "holds_ranks"]

_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?")
_FILE = "model_optim_rng.pt"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_MODEL = re.compile(r"model(\d*)")

_AXES = {None: None, "rows": 0, "columns": 1}


def holds_ranks(folder: Path) -> bool:
    """Whether a folder is a checkpoint in the `torch` format."""
    return folder.is_dir() and any(_FOLDER.fullmatch(path.name) for path in folder.iterdir())


def _tensor(mapped: MappedFile, archive: Archive, form: TensorForm) -> torch.Tensor:
    """A view of the mapped file."""
    start, size = archive.span(form.storage)
    form.check(size)
    dtype: torch.dtype = getattr(torch, form.dtype)
    flat = mapped.tensor(start, dtype, (size // dtype.itemsize,))
    return flat.as_strided(form.sizes, form.strides, form.offset)


@dataclass(frozen=True)
class _Block:
    """Data of a global tensor, and its location in it."""

    offsets: tuple[int, ...]
    numbers: torch.Tensor


class TorchRanksReader:
    """The global tensors of one checkpoint folder, under the names and with the sizes of `torch_dist`.

    Args:
        folder: holds `mp_rank_…` folders.
        shape: the model; it says whether the last stage's output layer repeats the embedding.

    Raises:
        UserError: ranks are missing or damaged, or belong to a model that this project does not train.
    """

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder = folder
        self._blocks: dict[str, list[_Block]] = {}
        rows = [*shape.design.layer.values(), *shape.design.outside.values()]
        # Axis along which tensor parallelism splits; weights not listed are the same on all its ranks. A rank's rows of a
        # gated product are its share of the gate, then its share of the up projection.
        self._axes = {row.key: _AXES[row.cut] for row in rows}
        self._gated = {row.key for row in rows if row.part == "gate"}
        ranks = self._ranks()
        pipeline, tensor = 1 + max(p for p, _ in ranks), 1 + max(t for _, t in ranks)
        if missing := sorted({(p, t) for p in range(pipeline) for t in range(tensor)} - ranks.keys()):
            raise UserError(
                f"{folder}: the file of pipeline rank {missing[0][0]}, tensor rank {missing[0][1]} is missing "
                f"({len(missing)} of {pipeline * tensor}); copy it too, or use another step"
            )
        self.files = [ranks[key] for key in sorted(ranks)]
        stages = {key: self._read(path) for key, path in ranks.items()}
        chunks = {len(stage) for stage in stages.values()}
        if len(chunks) != 1:
            raise UserError(f"{folder}: its ranks hold different numbers of model chunks; use another step")
        layer = 0
        for number in range(chunks.pop()):  # virtual pipeline stages pass through all ranks in turn
            for p in range(pipeline):
                parts = [stages[p, t][number] for t in range(tensor)]
                layer += self._add(parts, layer, shape, last=p == pipeline - 1)

    def _ranks(self) -> dict[tuple[int, int], Path]:
        found = {}
        for path in self.folder.iterdir():
            if not path.name.startswith("mp_rank_"):
                continue
            name = _FOLDER.fullmatch(path.name)
            if name is None:
                raise UserError(f"{path}: has expert parallelism; only dense models can be converted")
            if (path / _FILE).is_file():
                found[int(name[2] or 0), int(name[1])] = path / _FILE
        if not found:
            raise UserError(f"{self.folder}: no {_FILE} in its mp_rank folders; copy the checkpoint again")
        return found

    def _read(self, path: Path) -> list[dict[str, torch.Tensor]]:
        """Tensors of each of a rank's model chunks."""
        mapped = MappedFile(path)
        try:
            with open_archive(path) as archive:
                models = {
                    int(name[1] or 0): items
                    for key, value in (as_mapping(archive.tree) or {}).items()
                    if (name := _MODEL.fullmatch(str(key))) and (items := as_mapping(value)) is not None
                }
                stages = [
                    {
                        str(key): _tensor(mapped, archive, form)
                        for key, value in models[number].items()
                        if (form := tensor_form(value)) is not None
                    }
                    for number in sorted(models)
                ]
        except PickleError as error:
            raise UserError(
                f"{path}: cannot be read ({error}); nothing of it was executed; copy it again, or use another step"
            ) from None
        if not models:
            raise UserError(f"{path}: contains no model; is it a megatron-core checkpoint?")
        if any(str(key).startswith("language_model") for model in models.values() for key in model):
            raise UserError(
                f"{path}: written by Megatron's legacy models (`language_model`); only megatron-core's models can be read"
            )
        return stages

    def _add(self, parts: Sequence[dict[str, torch.Tensor]], first: int, shape: Shape, *, last: bool) -> int:
        """Adds one stage's tensors, as its tensor-parallel ranks hold them; returns its number of layers."""
        if any(part.keys() != parts[0].keys() for part in parts):
            raise UserError(f"{self.folder}: tensor-parallel ranks hold different tensors; use another step")
        layers = 0
        for name in parts[0]:
            tensors = [part[name].detach() for part in parts]
            match = _LAYER.fullmatch(name)
            if match is None:
                if not (last and shape.tie_embeddings and name == OUTPUT):
                    self._place(name, name, tensors, ())
                continue
            layers = max(layers, int(match[1]) + 1)
            inner = NORM_KEYS.get(match[2], match[2])
            self._place(LAYERS + inner, inner, tensors, (first + int(match[1]),))
        return layers

    def _place(self, key: str, inner: str, tensors: Sequence[torch.Tensor], layer: tuple[int, ...]) -> None:
        """Adds a weight's blocks, one per rank (or two), to the global tensor `key`."""
        blocks = self._blocks.setdefault(key, [])
        axis = self._axes.get(inner)
        if axis is None:
            tensors = tensors[:1]
        halves = 2 if inner in self._gated else 1
        whole = sum(tensor.shape[axis] for tensor in tensors) if axis is not None else 0
        for half in range(halves):
            start = half * whole // halves
            for tensor in tensors:
                numbers = tensor.chunk(halves)[half] if halves > 1 else tensor
                offsets = [0] * tensor.dim()
                if axis is not None:
                    offsets[axis] = start
                    start += numbers.shape[axis]
                blocks.append(_Block((*layer, *offsets), numbers.view(*(1,) * len(layer), *numbers.shape)))

    @property
    def keys(self) -> set[str]:
        """Names of the global tensors."""
        return set(self._blocks)

    def size(self, key: str) -> tuple[int, ...]:
        """Sizes of a global tensor."""
        ends = [
            [start + size for start, size in zip(block.offsets, block.numbers.shape, strict=True)]
            for block in self._blocks[key]
        ]
        return tuple(map(max, zip(*ends, strict=True)))

    def dtype(self, key: str) -> torch.dtype:
        """Type of a global tensor."""
        return self._blocks[key][0].numbers.dtype

    @contextmanager
    def open(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        """Lends a slice of a global tensor; see `TorchDistReader.open`.

        Raises:
            UserError: blocks of the slice are missing from the checkpoint.
        """
        blocks = self._blocks[key]
        parts = overlaps(((block.offsets, block.numbers.shape) for block in blocks), offsets, sizes)
        if (found := covered(parts)) != math.prod(sizes):
            raise UserError(
                f"{self.folder}: only {found} of the {math.prod(sizes)} values of {key} at {list(offsets)} are stored; "
                "the checkpoint is incomplete; use another step"
            )
        if len(parts) == 1:
            yield blocks[parts[0].block].numbers[parts[0].inside]
            return
        whole = torch.empty(tuple(sizes), dtype=self.dtype(key))
        for part in parts:
            whole[part.wanted] = blocks[part.block].numbers[part.inside]
        yield whole
