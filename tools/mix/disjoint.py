"""Proof that a mix reads no document that an earlier phase has consumed, from the datasets as they were built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emma.base.errors import UserError
from emma.tools.mix.catalogue import Catalogue
from emma.tools.mix.layout import MixInfo, read_dataset_info, read_mix

__all__ = ["Disjoint", "prove_disjoint"]


@dataclass
class Disjoint:
    """What the proof found: faults, and in `notes` how many documents were compared."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prove_disjoint(mix: MixInfo, catalogues: Mapping[str, Catalogue]) -> Disjoint:
    """Marks each document of which a consumed sample of an earlier mix holds a token, and looks for them in this mix.

    Args:
        mix: its `excludes` name the earlier mixes.
        catalogues: by component, of the store that both were built from.
    """
    found = Disjoint()
    read = _documents(mix.train, None, catalogues)
    for entry in mix.excludes:
        folder = (mix.folder / entry["mix"]).resolve()
        try:
            earlier = read_mix(folder)
        except UserError as error:
            found.faults.append(f"data.mix.exclude_consumed: {error}; what was consumed cannot be compared")
            continue
        if earlier.fingerprint != entry["fingerprint"]:
            found.faults.append(
                f"{folder}: fingerprint {earlier.fingerprint[:12]}, but this mix leaves out what was consumed of "
                f"{entry['fingerprint'][:12]}: another mix has taken its place"
            )
            continue
        consumed = _documents(earlier.train, entry["samples"], catalogues)
        found.faults += _both(mix, folder, read, consumed, catalogues)
        count, mine = (sum(int(each.sum()) for each in marks.values()) for marks in (consumed, read))
        found.notes.append(
            f"{entry['samples']:,} samples of {folder} were consumed, which hold {count:,} documents; none of the {mine:,} "
            "documents of this mix is among them"
        )
    if found.faults:
        found.notes.clear()
    return found


def _both(
    mix: MixInfo,
    folder: Path,
    read: Mapping[str, np.ndarray],
    consumed: Mapping[str, np.ndarray],
    catalogues: Mapping[str, Catalogue],
) -> Iterator[str]:
    for name, marks in read.items():
        if len(both := np.flatnonzero(marks & consumed[name])):
            catalogue = catalogues[name]
            language = catalogue.languages[int(catalogue.language[both[0]])]
            yield (
                f"{mix.train / 'rows.npy'}: reads {len(both):,} documents of {name} that were consumed of {folder}, the first "
                f"one document {both[0]:,} of the component ({language})"
            )


def _documents(
    train: Path, samples: int | None, catalogues: Mapping[str, Catalogue]
) -> dict[str, np.ndarray]:
    """Which documents of each component the first samples of a dataset (None: all) hold a token of (bool)."""
    info = read_dataset_info(train)
    rows = np.load(train / "rows.npy", mmap_mode="r")
    if samples is not None:
        row, into = np.load(train / "samples.npy", mmap_mode="r")[samples].tolist()
        rows = rows[: row + 1] if into else rows[:row]
    found = {name: np.zeros(len(catalogue.tokens), bool) for name, catalogue in catalogues.items()}
    for number, shard in enumerate(info.shards):
        if shard.component in found:
            offsets = np.asarray(rows["offset"][rows["shard"] == number])
            documents = catalogues[shard.component].documents_at(shard.number, offsets)
            found[shard.component][documents] = True
    return found
