"""Megatron → Hugging Face: writes slices of the global tensors as safetensors, block by block."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.base.manifest import FileRecord, Manifest
from emma.base.progress import progress
from emma.base.staging import check_free_space, staged_folder
from emma.checkpoints_conversion.checkpoint import Checkpoint, find_checkpoint
from emma.checkpoints_conversion.config import check_same_shape, generation_config, hf_config
from emma.checkpoints_conversion.dtypes import dtype_name, parse_dtype
from emma.checkpoints_conversion.main_weights import Distance, release_record
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.safetensors_files import OutgoingTensor, write_shards
from emma.checkpoints_conversion.tokenizer_files import copy_tokenizer
from emma.checkpoints_conversion.weights import AveragedWeights, MegatronWeights, Weights, WeightsKind, blocks

__all__ = ["DEFAULT_SHARD_BYTES", "convert", "plan"]

DEFAULT_SHARD_BYTES = 5_000_000_000


class _Export:
    """The inputs of an export, checked before anything is written."""

    def __init__(
        self,
        source: Path,
        step: int | None,
        weights: WeightsKind,
        average: Sequence[int],
        dtype: str | None,
        tokenizer: Path | None,
    ) -> None:
        if average and step is not None:
            raise UserError("--step and --average cannot be combined: --average names its own steps")
        if len(set(average)) != len(average) or len(average) == 1:
            raise UserError(f"--average {','.join(map(str, average))}: give two or more distinct steps")
        steps: Sequence[int | None] = average or [step]
        self.checkpoints = [find_checkpoint(source, one, tokenizer=tokenizer) for one in steps]
        self.sources = [MegatronWeights(checkpoint, weights) for checkpoint in self.checkpoints]
        if len({source.kind for source in self.sources}) > 1:
            raise UserError(
                f"--average {','.join(map(str, average))}: some of these steps keep their weights in FP8 and some do not; "
                "average their main weights with --weights optimizer"
            )
        self.distance = Distance(self.sources)
        for other in self.checkpoints[1:]:
            check_same_shape(other.shape, self.last.shape, str(other.folder), str(self.last.folder))
        self.tokens = self.last.tokens
        cast = None if dtype is None else parse_dtype(dtype)
        self.tensors = [
            self._tensor(name, sizes, cast) for name, sizes in parameter_shapes(self.last.shape).items()
        ]
        self.size = sum(tensor.size for tensor in self.tensors)

    @property
    def last(self) -> Checkpoint:
        """The latest checkpoint; its description becomes the export's."""
        return max(self.checkpoints, key=lambda checkpoint: checkpoint.step)

    @property
    def dtype(self) -> str:
        """The most common type among the weights, for `config.json`."""
        weight: dict[torch.dtype, int] = {}
        for tensor in self.tensors:
            weight[tensor.dtype] = weight.get(tensor.dtype, 0) + tensor.size
        return dtype_name(max(weight, key=lambda dtype: weight[dtype]))

    def merged(self) -> Weights:
        """The exported weights, as one object."""
        return self.sources[0] if len(self.sources) == 1 else AveragedWeights(self.sources)

    def _tensor(self, name: str, sizes: tuple[int, ...], cast: torch.dtype | None) -> OutgoingTensor:
        found = {source.dtype(name) for source in self.sources}
        if cast is None and len(found) > 1:
            raise UserError(
                f"{name} is {' and '.join(sorted(map(dtype_name, found)))} in the checkpoints to average; "
                "choose a type with --dtype"
            )
        dtype = cast or next(iter(found))
        return OutgoingTensor(name, dtype, sizes, functools.partial(self._blocks, name, dtype))

    def _blocks(self, name: str, dtype: torch.dtype) -> Iterable[torch.Tensor]:
        return blocks(self.sources, name, dtype, self.distance.add)


def _inputs(checkpoint: Checkpoint) -> list[FileRecord]:
    """Records of the files read. Hashes of `.distcp` files are taken from the checkpoint if it has them: most
    of their bytes (and of the `torch` format's `.pt` files) are optimizer state, which exports don't read."""
    integrity = checkpoint.folder / "integrity.json"
    known = read_json(integrity)["files"] if integrity.is_file() else {}
    records = []
    for path in sorted(checkpoint.folder.rglob("*")):
        if path.suffix in (".distcp", ".pt"):
            checksum = f"sha256:{known[path.name]}" if path.name in known else "not taken"
            records.append(FileRecord(str(path), path.stat().st_size, checksum))
        elif path.is_file():
            records.append(FileRecord.of(path))
    if checkpoint.description.is_file() and checkpoint.description.parent != checkpoint.folder:
        records.append(FileRecord.of(checkpoint.description))
    return records


def plan(
    source: Path,
    *,
    step: int | None = None,
    weights: WeightsKind = "auto",
    average: Sequence[int] = (),
    dtype: str | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """What `convert` would write, after all checks that don't read weights.

    Returns:
        `checkpoints` (folders), `steps`, `weights` (`model` or `optimizer`), `dtype`, `parameters` (number of tensors), `bytes`, `tokens`, and
        `tokenizer`.
    """
    export = _Export(source, step, weights, average, dtype, tokenizer)
    last = export.last
    return {
        "checkpoints": [str(checkpoint.folder) for checkpoint in export.checkpoints],
        "steps": [checkpoint.step for checkpoint in export.checkpoints],
        "weights": export.sources[0].kind,
        "dtype": export.dtype,
        "parameters": len(export.tensors),
        "bytes": export.size,
        "shards": math.ceil(export.size / shard_bytes),
        "tokens": export.tokens.as_dict(),
        "tokenizer": None if last.tokenizer is None else str(last.tokenizer),
    }


def convert(
    source: Path,
    destination: Path,
    *,
    step: int | None = None,
    weights: WeightsKind = "auto",
    average: Sequence[int] = (),
    dtype: str | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    threads: int = 2,
    check: Callable[[Weights, Path, dict[str, Any]], str] | None = None,
) -> Manifest:
    """Exports a checkpoint as a Hugging Face folder.

    Args:
        source: a run folder, a folder of checkpoints, or a single checkpoint.
        destination: folder to write.
        step: step to export; by default, the latest complete one.
        weights: `model`, `optimizer` for the optimizer's FP32 main weights, or `auto` for the latter where the run
            kept the model's in FP8 (`precision.fp8_params`).
        average: steps whose weights are averaged (in FP32); cannot be combined with `step`.
        dtype: cast to `fp32`, `bf16`, or `fp16`; by default, each weight keeps its stored type.
        shard_bytes: maximum size of the tensors in one safetensors file.
        tokenizer: folder with the tokenizer's files; by default, the one named by the recipe or the import.
        overwrite: replace `destination`.
        threads: files written at once.
        check: called with the weights, the folder, and the record of which weights they are (`release_record`), before
            the folder gets its final name. Returns the text
            that the manifest records, may add files, and raises to refuse the export.

    Returns:
        The manifest, as written.

    Raises:
        UserError: the step is missing or incomplete, files are damaged, the tokenizer is wrong, there is too
            little disk space, or `destination` exists. Leaves nothing behind.
    """
    export = _Export(source, step, weights, average, dtype, tokenizer)
    last = export.last
    check_free_space(destination, math.ceil(export.size * 1.01))
    manifest = Manifest("convert.megatron-to-hf", last.recipe_sha256)
    bar: tqdm[None]
    with staged_folder(destination, overwrite=overwrite) as staging:
        with progress(total=export.size, desc="export", unit="B", unit_scale=True) as bar:
            records = write_shards(staging, export.tensors, shard_bytes, threads=threads, advance=bar.update)
        record = release_record(export.sources, export.distance)
        config = hf_config(last.shape, dtype=export.dtype, tokens=export.tokens)
        write_json(staging / "config.json", config)
        write_json(staging / "generation_config.json", generation_config(export.tokens))
        if last.tokenizer is not None:
            copy_tokenizer(last.tokenizer, staging)
        checked = "not run" if check is None else check(export.merged(), staging, record)
        written = {record.path for record in records}
        others = sorted(path for path in staging.iterdir() if path.is_file() and path.name not in written)
        manifest.outputs = records + [FileRecord.of(path, staging) for path in others]
        manifest.inputs = [record for checkpoint in export.checkpoints for record in _inputs(checkpoint)]
        manifest.counts = {"in": len(export.tensors), "kept": len(export.tensors), "removed_by": {}}
        manifest.extra = {
            "steps": [checkpoint.step for checkpoint in export.checkpoints],
            "weights": record["weights"],
            "released": record,
            "dtype": export.dtype,
            "cast": dtype,
            "huggingface": last.huggingface,
            "parity": checked,
        }
        manifest.write(staging)
    return manifest
