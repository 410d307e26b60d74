"""Release weights: shards with an index, and the hash of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import write_json
from emma.base.manifest import FileRecord
from emma.base.progress import progress
from emma.checkpoints_conversion.safetensors_files import (
    INDEX_NAME,
    SINGLE_NAME,
    OutgoingTensor,
    SafetensorsReader,
    tensor_bytes,
    write_shards,
)

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

__all__ = ["check_parity", "copy_weights", "release_files", "tensor_hashes"]

_BLOCK_BYTES = 32 << 20


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    yield from flat.split(max(1, _BLOCK_BYTES // flat.element_size()))


def copy_weights(source: Path, destination: Path, shard_bytes: int) -> tuple[dict[str, str], dict[str, str]]:
    """Writes a model folder's tensors as shards with an index, even if there is only one shard.

    Args:
        source: folder with safetensors files.
        destination: existing folder.
        shard_bytes: maximum size of the tensors in one file.

    Returns:
        SHA-256 of every tensor's bytes, by tensor name, and of every written file, by file name.
    """
    reader = SafetensorsReader(source)
    hashes: dict[str, str] = {}

    def blocks(name: str) -> Iterator[torch.Tensor]:
        digest = hashlib.sha256()
        with reader.open(name) as tensor:
            for block in _blocks(tensor):
                digest.update(tensor_bytes(block))
                yield block
        hashes[name] = digest.hexdigest()

    tensors = [
        OutgoingTensor(name, record.dtype, record.shape, partial(blocks, name))
        for name, record in reader.records.items()
    ]
    total = sum(tensor.size for tensor in tensors)
    bar: tqdm[Any]
    with progress(total=total, desc="weights", unit="B", unit_scale=True) as bar:
        records = write_shards(destination, tensors, shard_bytes, advance=bar.update)
    files = {record.path: record.checksum.removeprefix("sha256:") for record in records}
    if SINGLE_NAME in files:
        name = "model-00001-of-00001.safetensors"
        (destination / SINGLE_NAME).rename(destination / name)
        files = {name: files[SINGLE_NAME]}
        weight_map = {tensor.name: name for tensor in tensors}
        write_json(destination / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return hashes, {name: checksum for name, checksum in files.items() if name != INDEX_NAME}


def release_files(folder: Path, weights: dict[str, str]) -> list[FileRecord]:
    """Records of a release's files: the weights, whose SHA-256 by file name `copy_weights` gave, then all others."""
    others = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in weights)
    return [
        FileRecord(name, (folder / name).stat().st_size, f"sha256:{checksum}")
        for name, checksum in weights.items()
    ] + [FileRecord.of(path, folder) for path in others]


def tensor_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes in a model folder."""
    reader = SafetensorsReader(folder)
    hashes = {}
    bar: tqdm[Any]
    with progress(
        total=sum(r.size for r in reader.records.values()), desc="tensors", unit="B", unit_scale=True
    ) as bar:
        for name in reader.records:
            digest = hashlib.sha256()
            with reader.open(name) as tensor:
                for block in _blocks(tensor):
                    digest.update(tensor_bytes(block))
                    bar.update(block.numel() * block.element_size())
            hashes[name] = digest.hexdigest()
    return hashes


def check_parity(parity: Any, where: Path, hashes: dict[str, str] | None = None) -> None:
    """Refuses a parity report that fails, is incomplete, or covers other weights.

    Args:
        parity: content of `parity.json`.
        where: the file, for messages.
        hashes: SHA-256 of the tensors that it must cover; without them, not compared.

    Raises:
        UserError: not a parity report, or one without parameters or logits.
        CheckFailedError: the report fails, or covers other tensors.
    """
    again = "prove parity again with `emma convert verify CHECKPOINT EXPORT`, or export again"
    if not isinstance(parity, dict) or not isinstance(parity.get("passed"), bool):
        raise UserError(f"{where}: not a parity report; {again}")
    if not parity["passed"]:
        raise CheckFailedError(
            f"{where}: parity failed ({'; '.join(parity.get('faults', []))}); export again"
        )
    for part, what in (("tensors", "parameters"), ("logits", "logits")):
        if not parity.get(part):
            raise UserError(f"{where}: the report does not compare {what}; {again}")
    if hashes is None:
        return
    proven = parity["tensors"]["sha256"]
    different = sorted(name for name in hashes.keys() | proven.keys() if hashes.get(name) != proven.get(name))
    if different:
        raise CheckFailedError(
            f"{where}: the report is about other weights: {len(different)} tensors differ (the first is {different[0]}); "
            f"{again}"
        )
