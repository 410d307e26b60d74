"""Writes the result of a merge: a Hugging Face folder, or a Megatron checkpoint that a run can start from."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import write_json, write_text
from emma.base.manifest import FileRecord, Manifest
from emma.base.progress import progress
from emma.base.staging import check_free_space, staged_folder
from emma.checkpoints_conversion.checkpoint import check_written
from emma.checkpoints_conversion.config import generation_config, hf_config
from emma.checkpoints_conversion.dtypes import dtype_name
from emma.checkpoints_conversion.hf_to_megatron import checkpoint_blocks, checkpoint_objects, write_companions
from emma.checkpoints_conversion.merging import STAGE
from emma.checkpoints_conversion.merging.merged import MergedWeights
from emma.checkpoints_conversion.merging.parents import Family, Member, open_family
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.safetensors_files import OutgoingTensor, write_shards
from emma.checkpoints_conversion.tokenizer_files import check_tokenizer, copy_tokenizer, tokenizer_files
from emma.checkpoints_conversion.torch_dist_writer import write_torch_dist
from emma.recipes.schema.merge import Merge
from emma.tools.runs.checkpoints import TRACKER, checkpoint_folder

__all__ = ["DEFAULT_SHARD_BYTES", "merge", "plan"]

DEFAULT_SHARD_BYTES = 5_000_000_000


def _bytes(family: Family) -> int:
    return sum(
        math.prod(sizes) * family.dtype(name).itemsize
        for name, sizes in parameter_shapes(family.shape).items()
    )


def _member(family: Family, member: Member) -> dict[str, Any]:
    settings = family.recipe
    record: dict[str, Any] = {
        "name": member.label,
        "path": str(member.folder),
        "role": "base" if member is family.base else "model",
        "step": None if member.checkpoint is None else member.checkpoint.step,
        "weights": None if member.checkpoint is None else member.weights.kind,  # type: ignore[union-attr]
        "huggingface": member.settings.huggingface,
        "origin": member.origin,
        "licenses": member.licenses,
    }
    if member is not family.base and settings.method != "slerp":
        record["weight"] = member.weight
    if member is not family.base and (settings.density or member.settings.density):
        record["density"] = member.density
    return record


def _facts(family: Family) -> dict[str, Any]:
    """What a plan and a manifest say."""
    vocabulary, members = family.vocabulary, family.members
    new = vocabulary.rows - vocabulary.shared
    sources = [m.label for m in family.models if m in family.grown] or [m.label for m in family.grown]
    unchecked = f"no tokenizer to compare: {', '.join(vocabulary.unchecked)}"
    return {
        "method": family.recipe.method,
        "parents": [_member(family, member) for member in members],
        "format": "megatron" if family.megatron else "huggingface",
        "dtype": dtype_name(family.dtype(next(iter(parameter_shapes(family.shape))))),
        "vocabulary": {
            "rows": vocabulary.rows,
            "shared_rows": vocabulary.shared,
            "new_rows": new,
            "new_rows_from": sources if new else [],
        },
        "tokenizer": family.companion.label,
        "huggingface": next((member.origin for member in members if member.origin), None),
        "licenses": list(dict.fromkeys(one for member in members for one in member.licenses)),
        "warnings": [unchecked] if vocabulary.unchecked and len(members) > len(vocabulary.unchecked) else [],
    }


def plan(recipe: Merge) -> dict[str, Any]:
    """What `merge` would write, after all checks that read no weights.

    Returns:
        `method`, `parents`, `format`, `dtype`, `vocabulary`, `tokenizer` (name of the model that it comes from),
        `huggingface` (the base that all descend from, if known), `licenses`, `warnings`, `bytes`.
    """
    family = open_family(recipe)
    return {**_facts(family), "bytes": _bytes(family)}


def merge(
    recipe: Merge,
    destination: Path,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    threads: int = 2,
) -> Manifest:
    """Merges models.

    Args:
        recipe: which, and how.
        destination: folder to write.
        shard_bytes: most bytes of tensors in a safetensors file.
        overwrite: replace `destination`.
        threads: files written at once; the result does not depend on it.

    Returns:
        The manifest, as written.

    Raises:
        UserError: the models don't belong together, hold values that are not finite, or would in the result; too little
            disk space; `destination` exists. Leaves nothing behind.
    """
    family = open_family(recipe)
    target = destination.resolve()
    for member in family.members:
        if target in (own := member.folder.resolve(), *own.parents):
            raise UserError(
                f"{destination}: holds {member.label}, which is merged; name another folder for the result"
            )
        if member.checkpoint is not None:
            check_written(member.folder)
    tokens = family.companion.tokens
    merged = MergedWeights(family)
    check_free_space(destination, math.ceil(1.01 * _bytes(family)))
    manifest = Manifest(STAGE, "")
    manifest.inputs = [record for member in family.members for record in _inputs(member)]
    with staged_folder(destination, overwrite=overwrite) as staging:
        bar: Any
        with progress(total=_bytes(family), desc="merge", unit="B", unit_scale=True) as bar:
            if family.megatron:
                folder = checkpoint_folder(staging, 0)
                folder.mkdir()
                blocks = checkpoint_blocks(merged, family.shape, None)
                objects = checkpoint_objects(family.shape)
                records = write_torch_dist(folder, blocks, objects, threads=threads, advance=bar.update)
            else:
                records = write_shards(
                    staging, _tensors(merged), shard_bytes, threads=threads, advance=bar.update
                )
            merged.finish()
        facts = _facts(family)
        if family.megatron:
            sidecar = {"huggingface": facts["huggingface"], "source": destination, "files": manifest.inputs}
            write_companions(folder, family.shape, tokens, family.companion.tokenizer, records, sidecar)
            write_text(staging / TRACKER, "0")
        else:
            _write_settings(family, staging, facts["dtype"])
        written = {str(Path(folder.name) / r.path) if family.megatron else r.path: r for r in records}
        manifest.outputs = FileRecord.of_folder(staging, written)
        manifest.counts = {"in": len(family.members), "kept": len(family.members), "removed_by": {}}
        digests, distances = merged.digests(), merged.distances()
        for parent in facts["parents"]:
            parent["distance"] = distances.get(parent["name"])
            parent["tensors"] = digests[parent["name"]]
        manifest.extra = {**facts, "recipe": recipe.model_dump()}
        manifest.write(staging)
    return manifest


def _tensors(merged: MergedWeights) -> Sequence[OutgoingTensor]:
    return [
        OutgoingTensor(name, merged.dtype(name), sizes, functools.partial(merged.stream, name))
        for name, sizes in merged.sizes.items()
    ]


def _inputs(member: Member) -> list[FileRecord]:
    """The files that are read. Hashes of weights are taken by parameter, as they are merged."""
    small = [
        member.folder / name
        for name in ("config.json", "generation_config.json", "model.yaml", "metadata.json")
    ]
    if member.tokenizer is not None:
        small += tokenizer_files(member.tokenizer)
    if member.checkpoint is not None and member.checkpoint.description.is_file():
        small.append(member.checkpoint.description)
    weights = member.weights.reader.files if member.checkpoint is not None else member.weights.files  # type: ignore[union-attr]
    return [FileRecord.of(path) for path in dict.fromkeys(small) if path.is_file()] + [
        FileRecord(str(path), path.stat().st_size, "") for path in weights
    ]


def _write_settings(family: Family, staging: Path, dtype: str) -> None:
    companion = family.companion
    write_json(staging / "config.json", hf_config(family.shape, dtype=dtype, tokens=companion.tokens))
    own = companion.folder / "generation_config.json"
    if companion.checkpoint is None and own.is_file():
        shutil.copyfile(own, staging / own.name)
    else:
        write_json(staging / "generation_config.json", generation_config(companion.tokens))
    if companion.tokenizer is not None:
        copy_tokenizer(companion.tokenizer, staging)
        check_tokenizer(staging, family.shape.vocab_size)
