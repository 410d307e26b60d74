"""Hugging Face → Megatron: writes each parameter as its slice of a global tensor, from the mapped file."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.files import write_json, write_text
from emma.base.manifest import FileRecord, Manifest
from emma.base.progress import progress
from emma.base.staging import check_free_space, staged_folder
from emma.checkpoints_conversion.checkpoint import TOKENIZER_FOLDER, write_sidecar
from emma.checkpoints_conversion.config import TokenIds, check_same_shape, token_ids_from_hf
from emma.checkpoints_conversion.dtypes import dtype_name, parse_dtype
from emma.checkpoints_conversion.finite import Scan
from emma.checkpoints_conversion.parameters import (
    EMBEDDING,
    OUTPUT,
    Chunk,
    chunks,
    fuse_qkv,
    global_sizes,
    name_of,
    parameter_shapes,
)
from emma.checkpoints_conversion.stock_megatron import architecture, loading
from emma.checkpoints_conversion.tokenizer_files import check_tokenizer, copy_tokenizer, tokenizer_files
from emma.checkpoints_conversion.torch_dist_writer import Block, write_torch_dist
from emma.checkpoints_conversion.weights import HuggingFaceWeights, Weights
from emma.recipes.schema.model import Model, Shape
from emma.tools.runs.checkpoints import TRACKER, checkpoint_folder, mark_complete
from emma.tools.runs.checksums import ListedFile

__all__ = ["checkpoint_blocks", "checkpoint_objects", "convert", "plan", "write_companions"]

_VOCABULARY_BLOCK = 256 << 20  # bytes per block of the embedding, by far the largest tensor

# Modules outside of the projections that have an `_extra_state` of their own under Transformer Engine: norms.
_NORMS = ("q_layernorm", "k_layernorm", "post_layernorm")


def _modules_with_extra_state(shape: Shape) -> list[str]:
    """Modules of a layer with an `_extra_state`, in Megatron's local and Transformer Engine implementations."""
    modules = {row.key.rpartition(".")[0] for row in shape.design.layer.values()}
    return sorted(module for module in modules if module.split(".")[-1].startswith(("linear_", *_NORMS)))


def _shape_to_write(base: Shape, model: Shape | None, source: Path) -> Shape:
    if model is None:
        return base
    name = model.name if isinstance(model, Model) else "the given shape"
    check_same_shape(base, model, str(source), name)
    # The network's function is the same; padding and context length come from the recipe.
    return Shape.model_validate(model.model_dump(include=set(Shape.model_fields)))


def _dtype(weights: Weights, chunk: Chunk, cast: torch.dtype | None) -> torch.dtype | None:
    found = {weights.dtype(name) for name in chunk.names}
    if cast is not None and chunk.names:
        return cast
    if len(found) > 1:
        names = ", ".join(f"{name} is {dtype_name(weights.dtype(name))}" for name in chunk.names)
        raise UserError(
            f"{weights.folder}: {names}; Megatron stores them as one tensor: choose a type with --dtype"
        )
    return next(iter(found), None)


def checkpoint_blocks(
    weights: Weights, shape: Shape, cast: torch.dtype | None, scan: Scan | None = None
) -> list[Block]:
    """The checkpoint's blocks, in network order.

    Raises:
        UserError: parameters that Megatron stores as one tensor have several types, and `cast` is None.
    """
    sizes = global_sizes(shape)
    dtypes: dict[str, torch.dtype] = {}
    result = []
    for chunk in chunks(shape):
        dtype = _dtype(weights, chunk, cast) or dtypes[chunk.key]
        if dtypes.setdefault(chunk.key, dtype) != dtype:
            raise UserError(
                f"{weights.folder}: {chunk.names[0]} is {dtype_name(dtype)}, but in other layers it is "
                f"{dtype_name(dtypes[chunk.key])}; Megatron stores them as one tensor: choose a type with --dtype"
            )
        for piece, first in _pieces(chunk, dtype):
            opener = functools.partial(_open, weights, shape, piece, first, dtype, scan)
            result.append(Block(chunk.key, sizes[chunk.key], piece.offsets, piece.sizes, dtype, opener))
    return result


def _pieces(chunk: Chunk, dtype: torch.dtype) -> Iterator[tuple[Chunk, int]]:
    """Cuts a block of the vocabulary into smaller ones; yields each with its first row within the block."""
    if chunk.key not in (EMBEDDING, OUTPUT):
        yield chunk, 0
        return
    rows, hidden = chunk.sizes
    step = max(1, _VOCABULARY_BLOCK // (hidden * dtype.itemsize))
    for first in range(0, rows, step):
        size = (min(step, rows - first), hidden)
        yield Chunk(chunk.key, (chunk.offsets[0] + first, 0), size, chunk.names), first


@contextmanager
def _open(
    weights: Weights, shape: Shape, chunk: Chunk, first: int, dtype: torch.dtype, scan: Scan | None
) -> Iterator[torch.Tensor]:
    if not chunk.names:
        yield torch.zeros(chunk.sizes, dtype=dtype)
        return
    rows = (first, chunk.sizes[0]) if chunk.key in (EMBEDDING, OUTPUT) else None
    with ExitStack() as stack:
        stored = [stack.enter_context(weights.open(name, rows)) for name in chunk.names]
        parts = [part.to(dtype) for part in stored]
        if scan is not None:
            for name, part, source in zip(chunk.names, parts, stored, strict=True):
                scan.add(name, first, part.reshape(part.shape or (1,)), source.reshape(source.shape or (1,)))
        yield (fuse_qkv(shape, parts) if len(parts) > 1 else parts[0]).view(chunk.sizes)


def checkpoint_objects(shape: Shape) -> dict[str, Any]:
    """What Megatron's loader needs besides tensors, by the unique keys of Megatron's sharded objects."""
    common = {
        "args": architecture(shape),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0.0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    # No FP8 history exists yet, so every extra state is empty; both implementations accept None for that.
    extra = {
        f"decoder.layers.{module}._extra_state/shard_{layer}_{shape.layers}": None
        for layer in range(shape.layers)
        for module in _modules_with_extra_state(shape)
    }
    return {"common_state/shard_0_1": common, **extra, "decoder.final_layernorm._extra_state/shard_0_1": None}


def plan(
    source: Path, *, model: Shape | None = None, dtype: str | None = None, text_only: bool = False
) -> dict[str, Any]:
    """What `convert` would do, after all checks that don't read weights.

    Returns:
        `shape`, `dtype` (of the embedding), `tensors` (number of global tensors), `bytes` to write, and
        `padding_rows`.
    """
    weights = HuggingFaceWeights(source, text_only=text_only)
    shape = _shape_to_write(weights.shape, model, source)
    parts = checkpoint_blocks(weights, shape, None if dtype is None else parse_dtype(dtype))
    token_ids_from_hf(source, shape.vocab_size)
    check_tokenizer(source, shape.vocab_size)
    return {
        "shape": shape.model_dump(include=set(Shape.model_fields)),
        "dtype": dtype_name(parts[0].dtype),
        "tensors": len(global_sizes(shape)),
        "bytes": sum(part.size for part in parts),
        "padding_rows": shape.padded_vocab_size(1) - shape.vocab_size,
    }


def convert(
    source: Path,
    destination: Path,
    *,
    model: Shape | None = None,
    dtype: str | None = None,
    text_only: bool = False,
    overwrite: bool = False,
    allow_nonfinite: Collection[str] = (),
    threads: int = 2,
    check: Callable[[Weights, Path], str] | None = None,
) -> Manifest:
    """Imports a Hugging Face model as a Megatron checkpoint that every TP×PP layout can start from.

    Args:
        source: folder with `config.json`, safetensors files and, if the model has one, the tokenizer.
        destination: folder to write: the tracker file, `iter_0000000/`, and `manifest.json`.
        model: the recipe's model (or a shape), which the base must match; by default, that of `config.json`.
        dtype: cast to `fp32`, `bf16`, or `fp16`; by default, each weight keeps its type.
        overwrite: replace `destination`.
        allow_nonfinite: parameters that may hold NaN or infinite values; the manifest records them.
        threads: files written at once.
        check: called with the weights and the folder before the folder gets its final name. Returns the text
            that the manifest records, may add files, and raises to refuse the import.

    Returns:
        The manifest, as written.

    Raises:
        UserError: wrong or damaged input, a shape other than the recipe's, too little disk space, or
            `destination` exists. Leaves nothing behind.
    """
    weights = HuggingFaceWeights(source, text_only=text_only)
    shape = _shape_to_write(weights.shape, model, source)
    if unknown := sorted(set(allow_nonfinite) - parameter_shapes(shape).keys()):
        raise UserError(f"--allow-nonfinite {unknown[0]}: {source} has no such parameter; correct the name")
    tokens: TokenIds = token_ids_from_hf(source, shape.vocab_size)
    tokenizer = check_tokenizer(source, shape.vocab_size)
    scan = Scan(allow_nonfinite, by_row={name_of(shape, EMBEDDING), name_of(shape, OUTPUT)})
    parts = checkpoint_blocks(weights, shape, None if dtype is None else parse_dtype(dtype), scan)
    total = sum(part.size for part in parts)
    check_free_space(destination, math.ceil(total * 1.01))
    manifest = Manifest("convert.hf-to-megatron", "")
    bar: tqdm[None]
    with staged_folder(destination, overwrite=overwrite) as staging:
        folder = checkpoint_folder(staging, 0)
        folder.mkdir()
        with (
            _hashing(_read_files(source, weights), source) as inputs,
            progress(total=total, desc="import", unit="B", unit_scale=True) as bar,
        ):
            records = write_torch_dist(
                folder, parts, checkpoint_objects(shape), threads=threads, advance=bar.update
            )
            scan.check(source)
            manifest.inputs = inputs.result()
        huggingface = model.huggingface if isinstance(model, Model) else None
        sidecar = {"huggingface": huggingface, "source": source, "files": manifest.inputs}
        write_companions(folder, shape, tokens, source, records, sidecar)
        write_text(staging / TRACKER, "0")
        checked = "not run" if check is None else check(weights, staging)
        written = {f"{folder.name}/{record.path}": record for record in records}
        manifest.outputs = FileRecord.of_folder(staging, written)
        manifest.counts = {"in": len(weights.files), "kept": len(weights.files), "removed_by": {}}
        manifest.extra = {
            "dtype": dtype_name(parts[0].dtype),
            "cast": dtype,
            "padding_rows": shape.padded_vocab_size(1) - shape.vocab_size,
            "stock_megatron": loading(shape),
            "tokenizer": tokenizer,
            "left_behind": weights.left_behind,
            "nonfinite": scan.nonfinite(),
            "zeros": scan.zeros(),
            "warnings": [
                *scan.warnings(),
                *([f"tokenizer {tokenizer}"] if "not checked" in tokenizer else []),
            ],
            "parity": checked,
        }
        manifest.write(staging)
    return manifest


def _read_files(source: Path, weights: HuggingFaceWeights) -> list[Path]:
    small = [source / name for name in ("config.json", "generation_config.json") if (source / name).is_file()]
    return [*small, *tokenizer_files(source), *weights.files]


@contextmanager
def _hashing(paths: list[Path], root: Path) -> Iterator[Future[list[FileRecord]]]:
    """Hashes files on a thread; if the block exits early, no further file is started."""
    stopped = threading.Event()

    def records() -> list[FileRecord]:
        return [FileRecord.of(path, root) for path in paths if not stopped.is_set()]

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(records)
        finally:
            stopped.set()


def write_companions(
    folder: Path,
    shape: Shape,
    tokens: TokenIds,
    tokenizer: Path | None,
    records: list[FileRecord],
    sidecar: Mapping[str, Any],
) -> None:
    """Writes everything in the checkpoint folder except the tensors; the completion mark comes last.

    Args:
        folder: the checkpoint, with its tensors' files.
        shape: the model.
        tokens: its special tokens.
        tokenizer: folder with its tokenizer's files, if it has any.
        records: of the tensors' files.
        sidecar: the other arguments of `write_sidecar`.
    """
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(config))
    written = [*records, *(FileRecord.of(folder / name, folder) for name in (".metadata", "metadata.json"))]
    hashes = {record.path: record.checksum.removeprefix("sha256:") for record in written}
    write_json(folder / "integrity.json", {"algorithm": "sha256", "files": dict(sorted(hashes.items()))})
    if tokenizer is not None and tokenizer_files(tokenizer):
        (folder / TOKENIZER_FOLDER).mkdir()
        copy_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    write_sidecar(folder, shape, tokens, **sidecar)
    mark_complete(folder, {r.path: ListedFile(r.bytes, r.checksum) for r in written}, step=0)
