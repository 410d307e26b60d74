"""A component's documents as compact arrays in memory: what choosing documents needs, without tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.recipes.schema.data import Consumed
from emma.tools.mix.layout import ROW, read_dataset_info, read_mix
from emma.tools.pack.store import Component

__all__ = ["Catalogue", "consumed_documents", "load_catalogue"]


@dataclass(frozen=True)
class Catalogue:
    """Documents of one component, in the order of its shards.

    Args:
        component: the component.
        languages: names that `language` refers to.
        language: uint16 [documents].
        tokens: int32 [documents].
        validation: bool [documents].
        first: int64 [shards + 1], index of each shard's first document.
        consumed: bool [documents], documents that an earlier phase trained on; None without an earlier phase.
    """

    component: Component
    languages: list[str]
    language: np.ndarray
    tokens: np.ndarray
    validation: np.ndarray
    first: np.ndarray
    consumed: np.ndarray | None = None

    @cached_property
    def _starts(self) -> np.ndarray:
        """Tokens before each document within the component, int64."""
        starts = np.zeros(len(self.tokens) + 1, np.int64)
        np.cumsum(self.tokens, out=starts[1:])
        return starts

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Document indices grouped by language, and where each group begins."""
        order = np.argsort(self.language, kind="stable")
        counts = np.bincount(self.language, minlength=len(self.languages))
        return order, np.concatenate([[0], np.cumsum(counts)])

    def of_language(self, language: str, *, validation: bool) -> np.ndarray:
        """Indices of a language's documents, ascending (int64); training excludes consumed documents."""
        if language not in self.languages:
            return np.zeros(0, np.int64)
        code = self.languages.index(language)
        order, bounds = self._order
        mine = order[bounds[code] : bounds[code + 1]]
        mine = mine[self.validation[mine] == validation]
        return mine if validation or self.consumed is None else mine[~self.consumed[mine]]

    def rows(self, documents: np.ndarray, shard_base: int, source: int) -> np.ndarray:
        """Rows (`ROW`) of documents; `shard_base` is the number of the component's first shard in the
        dataset."""
        rows = np.empty(len(documents), ROW)
        shard = np.searchsorted(self.first, documents, side="right") - 1
        within = self._starts[documents] - self._starts[self.first[shard]]
        rows["offset"] = within * self.component.dtype.itemsize
        rows["tokens"] = self.tokens[documents]
        rows["shard"] = shard + shard_base
        rows["source"] = source
        return rows

    def documents_at(self, shard: int, offsets: np.ndarray) -> np.ndarray:
        """Indices of the documents that hold the given byte offsets of a shard."""
        within = offsets // self.component.dtype.itemsize + self._starts[self.first[shard]]
        return np.searchsorted(self._starts, within, side="right") - 1


def load_catalogue(component: Component, consumed: Mapping[int, np.ndarray] | None = None) -> Catalogue:
    """Reads the documents of a component.

    Args:
        component: a finished component.
        consumed: by shard, byte offsets that an earlier phase read.

    Raises:
        UserError: a table is damaged, or disagrees with the manifest.
    """
    total = sum(shard.rows for shard in component.shards)
    names: dict[str, int] = {}
    language, tokens = np.empty(total, np.uint16), np.empty(total, np.int32)
    validation = np.empty(total, bool)
    first = [0]
    position = 0
    for shard in component.shards:
        begin = position
        for batch in _batches(shard.documents_path):
            stop = position + len(batch)
            if stop > total:
                break
            language[position:stop] = _codes(batch["language"], names)
            tokens[position:stop] = batch["tokens"].to_numpy()
            splits: dict[str, int] = {"train": 0, "validation": 1}
            validation[position:stop] = _codes(batch["split"], splits) == 1
            position = stop
        if position - begin != shard.rows:
            raise UserError(
                f"{shard.documents_path}: holds {position - begin} documents, but the manifest says "
                f"{shard.rows}; run `emma pack verify`"
            )
        size = int(tokens[begin:position].sum(dtype=np.int64)) * component.dtype.itemsize
        if size != shard.bytes:
            raise UserError(
                f"{shard.documents_path}: its documents hold {size} bytes, but {shard.bin_path.name} has "
                f"{shard.bytes}; run `emma pack verify`"
            )
        first.append(position)
    if len(names) > np.iinfo(np.uint16).max:
        raise UserError(f"{component.folder}: {len(names)} languages; a component may have at most 65,535")
    catalogue = Catalogue(component, list(names), language, tokens, validation, np.array(first, np.int64))
    if not consumed:
        return catalogue
    mask = np.zeros(total, bool)
    for number, offsets in consumed.items():
        mask[catalogue.documents_at(number, offsets)] = True
    return Catalogue(component, list(names), language, tokens, validation, catalogue.first, mask)


def _batches(path: Path) -> Sequence[pa.RecordBatch]:
    try:
        file = pq.ParquetFile(path, read_dictionary=["language", "split"])
        return file.iter_batches(1 << 20, columns=["language", "tokens", "split"], use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `emma pack verify`") from None


def _codes(column: pa.DictionaryArray, names: dict[str, int]) -> np.ndarray:
    """Codes of a dictionary column under one numbering for all batches; new names are added."""
    table = np.array([names.setdefault(name, len(names)) for name in column.dictionary.to_pylist()], np.int64)
    return table[column.indices.to_numpy(zero_copy_only=False)]


def consumed_documents(
    consumed: Sequence[Consumed], components: Sequence[Component]
) -> dict[str, dict[int, np.ndarray]]:
    """Documents that earlier phases read: by component and shard, their byte offsets (int64, unique).

    A document counts as consumed when a consumed sample holds any token of it.

    Raises:
        UserError: an earlier mix is missing, read another store, or has fewer samples than the recipe says
            were consumed.
    """
    by_name = {component.name: component for component in components}
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for entry in consumed:
        mix = read_mix(Path(entry.mix))
        for name, fingerprint in mix.components.items():
            if name in by_name and by_name[name].fingerprint != fingerprint:
                raise UserError(
                    f"data.mix.exclude_consumed: {entry.mix} was built from another {name!r} than "
                    f"{by_name[name].folder}, so its documents cannot be matched; build this mix from the same "
                    "store"
                )
        info = read_dataset_info(mix.train)
        samples = info.samples if entry.samples is None else entry.samples
        if samples > info.samples:
            raise UserError(
                f"data.mix.exclude_consumed: {entry.mix} has {info.samples} samples, so {samples} cannot be "
                "consumed"
            )
        starts = np.load(mix.train / "samples.npy", mmap_mode="r")
        row, into = starts[samples].tolist()
        rows = np.load(mix.train / "rows.npy", mmap_mode="r")[: row + (1 if into else 0)]
        for number, shard in enumerate(info.shards):
            if shard.component in by_name:
                offsets = rows["offset"][rows["shard"] == number]
                found.setdefault(shard.component, {}).setdefault(shard.number, []).append(offsets)
    return {
        name: {number: np.unique(np.concatenate(parts)) for number, parts in shards.items()}
        for name, shards in found.items()
    }
