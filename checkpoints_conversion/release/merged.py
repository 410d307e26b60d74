"""Release of a merge: like that of a run's export, with the licences of all parents and a card that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json, write_text
from emma.base.manifest import Manifest
from emma.base.staging import check_free_space, staged_folder
from emma.checkpoints_conversion.config import generation_config, model_from_hf, token_ids_from_hf
from emma.checkpoints_conversion.release.licenses import (
    License,
    copy_licence_files,
    fitting_name,
    hub_identifier,
    licenses_of,
)
from emma.checkpoints_conversion.release.merged_card import OF_A_RECIPE, RECORD, merged_card
from emma.checkpoints_conversion.release.verify import release_faults
from emma.checkpoints_conversion.release.weights import check_parity, copy_weights, release_files
from emma.checkpoints_conversion.safetensors_files import SafetensorsReader
from emma.checkpoints_conversion.tokenizer_files import copy_tokenizer, has_tokenizer
from emma.tools.hub.checksums import write_checksums
from emma.tools.inspection.models import check_model

__all__ = ["MergePlan", "plan_merge", "write_merge_release"]

_OF_A_PARENT = ("name", "role", "step", "weight", "density", "distance", "huggingface", "origin", "licenses")


@dataclass(frozen=True)
class MergePlan:
    """A release that is ready to be written: all checks that don't read weights have passed."""

    folder: Path
    title: str
    record: dict[str, Any]
    licenses: tuple[License, ...]
    licence_folders: Mapping[str, tuple[Path, ...]]
    parity: dict[str, Any]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        return {
            "model": self.title,
            "merge": str(self.folder),
            "bytes": self.bytes,
            "license": hub_identifier(self.licenses),
            "licenses": [one.id for one in self.licenses],
            "parents": [parent["huggingface"] or parent["name"] for parent in self.record["parents"]],
        }


def plan_merge(folder: Path, *, name: str | None = None, license_from: Path | None = None) -> MergePlan:
    """Checks what a release is made from.

    Args:
        folder: what `emma convert merge` wrote, in Hugging Face format.
        name: name of the model on its card; by default the merge's, with the prefix that the licences require.
        license_from: folder with the parents' licence files, searched first; of several licences, in subfolders of their
            identifiers.

    Raises:
        UserError: no proof, no tokenizer, a parent of an unknown licence, or a name that the licences don't allow.
        CheckFailedError: the proof failed.
    """
    extra = Manifest.read(folder).extra
    if extra["format"] != "huggingface":
        raise UserError(
            f"{folder}: is a Megatron checkpoint; merge with `format: huggingface` to release the result"
        )
    check_model(folder)
    report = folder / "parity.json"
    if not report.is_file():
        raise UserError(
            f"{report}: missing; a merge is released only once it has been computed again: `emma convert verify {folder}`"
        )
    parity = read_json(report)
    check_parity(parity, report)
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder}: has no tokenizer.json; copy the parents' tokenizers into their folders and merge again"
        )
    if unknown := [parent["name"] for parent in extra["parents"] if not parent["licenses"]]:
        raise UserError(
            f"{folder}: nothing says under which licence {', '.join(unknown)} may be used; give each its `license` (a Hub "
            "identifier) in the merge's recipe and merge again"
        )
    licenses = tuple(licenses_of(extra["licenses"]))
    if name is not None and fitting_name(name, *licenses) != name:
        prefixes = " and ".join(f"“{one.name_prefix}”" for one in licenses if one.name_prefix)
        raise UserError(f"--name {name}: the parents' licences require a name that begins with {prefixes}")
    sources = {
        one.id: tuple(
            path
            for path in (
                None if license_from is None else license_from / one.id,
                license_from if one.copies else None,
                folder,
                *(Path(parent["path"]) for parent in extra["parents"] if one.id in parent["licenses"]),
            )
            if path is not None
        )
        for one in licenses
    }
    size = sum(record.size for record in SafetensorsReader(folder).records.values())
    title = name or fitting_name(extra["recipe"]["name"], *licenses)
    return MergePlan(folder, title, _record(extra), licenses, sources, parity, size)


def _record(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a release says of a merge: nothing that names folders."""
    recipe = extra["recipe"]
    parents = []
    for parent in extra["parents"]:
        digest = hashlib.sha256(json.dumps(parent["tensors"], sort_keys=True).encode()).hexdigest()
        parents.append({**{key: parent.get(key) for key in _OF_A_PARENT}, "sha256": digest})
    return {
        "parents": parents,
        **{key: extra[key] for key in ("dtype", "vocabulary", "tokenizer", "licenses")},
        "recipe": {key: recipe[key] for key in ("name", "description", *OF_A_RECIPE)},
    }


def write_merge_release(
    plan: MergePlan, destination: Path, *, shard_bytes: int, overwrite: bool = False
) -> Manifest:
    """Writes the release folder; it appears complete and verified, or not at all.

    Args:
        plan: from `plan_merge`.
        destination: folder to write.
        shard_bytes: maximum size of the tensors in one safetensors file.
        overwrite: replace `destination`.

    Raises:
        UserError: `destination` exists, the disk has too little space, or a licence file is missing.
        CheckFailedError: the proof is about other weights, or the folder fails verification.
    """
    check_free_space(destination, int(plan.bytes * 1.01) + (1 << 20))
    manifest = Manifest("release.model", "")
    with staged_folder(destination, overwrite=overwrite) as staging:
        hashes, files = copy_weights(plan.folder, staging, shard_bytes)
        check_parity(plan.parity, plan.folder / "parity.json", hashes)
        values = generation_config(token_ids_from_hf(plan.folder, model_from_hf(plan.folder).vocab_size))
        write_json(staging / "config.json", read_json(plan.folder / "config.json") | values)
        write_json(
            staging / "generation_config.json", read_json(plan.folder / "generation_config.json") | values
        )
        copy_tokenizer(plan.folder, staging)
        # Without the names of this machine's folders.
        write_json(staging / "parity.json", plan.parity | {"a": "the merge of its parents", "b": plan.title})
        write_json(staging / RECORD, plan.record)
        copy_licence_files(plan.licenses, plan.licence_folders, staging)
        write_text(staging / "README.md", merged_card(staging, plan.title, plan.record, plan.parity))
        manifest.outputs = release_files(staging, files)
        manifest.counts = {"in": len(hashes), "kept": len(hashes), "removed_by": {}}
        manifest.extra = {key: value for key, value in plan.as_dict().items() if key != "merge"}
        manifest.write(staging)
        write_checksums(staging, files)
        if faults := release_faults(staging, read_weights=False):
            raise CheckFailedError("the release is not complete: " + "; ".join(faults))
    return manifest
