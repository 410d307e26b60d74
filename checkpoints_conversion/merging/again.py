"""Proof of a merge: its result computed once more from its parents, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emma.base.errors import CheckFailedError, UserError
from emma.base.manifest import Manifest
from emma.checkpoints_conversion.checkpoint import check_written
from emma.checkpoints_conversion.merging.merged import MergedWeights
from emma.checkpoints_conversion.merging.parents import Family, open_family
from emma.checkpoints_conversion.parity import TOLERANCE, Report, compare_weights
from emma.checkpoints_conversion.weights import open_weights
from emma.recipes.schema.merge import Merge

__all__ = ["prove"]


def prove(
    folder: Path,
    texts: Mapping[str, Sequence[str]] | None = None,
    *,
    tolerance: float = TOLERANCE,
    logits: bool = True,
    length: int = 64,
    mixed_length: int = 512,
) -> Report:
    """Merges the parents that a result's manifest names once more, in memory, and compares all parameters.

    Args:
        folder: what `emma convert merge` wrote.
        texts: language → texts for the logits; by default the built-in sample.
        tolerance: largest allowed difference between two logits.
        logits: compare logits too; of a Hugging Face folder.
        length: maximum tokens per text.
        mixed_length: maximum tokens of the sequence that spans all languages.

    Raises:
        UserError: a parent is missing, or the folder is damaged.
        CheckFailedError: a file of the folder, or a parent, is not what it was when they were merged; the message names
            the file, or the parent and its parameter.
    """
    manifest = Manifest.read(folder)
    if faults := _changed_files(manifest, folder):
        raise CheckFailedError("; ".join(faults))
    check_written(folder)
    family = open_family(Merge.model_validate(manifest.extra["recipe"]))
    merged = MergedWeights(family)
    merged.folder = folder  # whose config.json says how the logits are computed
    report = compare_weights(
        merged,
        open_weights(folder),
        texts,
        names=(f"the merge of {', '.join(member.label for member in family.members)}", str(folder)),
        tolerance=tolerance,
        logits=logits and not family.megatron,
        length=length,
        mixed_length=mixed_length,
    )
    merged.finish()
    if changed := _changed_parents(manifest.extra["parents"], merged.digests(), family):
        raise CheckFailedError(f"{folder} cannot be proven: {'; '.join(changed)}. Fix: restore these models")
    return report


def _changed_files(manifest: Manifest, folder: Path) -> list[str]:
    """Files of the result that are not what was written; of its weights, which are computed again, only missing ones."""
    small = [record for record in manifest.outputs if not record.path.endswith((".safetensors", ".distcp"))]
    contents = Manifest(manifest.stage, "", outputs=small).check_outputs(folder, contents=True)
    return list(dict.fromkeys([*manifest.check_outputs(folder), *contents]))


def _changed_parents(
    recorded: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, str]], family: Family
) -> list[str]:
    """Parents whose parameters are not those that were merged."""
    faults = []
    folders = {member.label: member.folder for member in family.members}
    for parent in recorded:
        label = parent["name"]
        if label not in found:
            raise UserError(
                f"the manifest names the parent {label}, which its recipe does not; the folder is damaged"
            )
        different = [name for name, digest in found[label].items() if parent["tensors"].get(name) != digest]
        if different:
            faults.append(
                f"{label} ({folders[label]}) is not the model that was merged: {different[0]} has other bytes "
                f"({len(different)} such parameters)"
            )
    return faults
