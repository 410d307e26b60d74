"""A component's documents as compact arrays in memory: what choosing documents needs, without tokens.

A document takes seven bytes (one more where an earlier phase's documents are left out, and one where repeated ones are
rehydrated), and eight more while single documents are looked up by their places (`documents_at`, `rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.arrays import NpyReader
from emma.base.errors import UserError
from emma.base.threads import in_order
from emma.recipes.schema.data import Consumed, Rehydrated
from emma.tools.mix.layout import ROW, read_dataset_info, read_mix
from emma.tools.pack.store import Component, Shard

__all__ = ["Catalogue", "Counts", "Part", "load_catalogue", "load_catalogues"]

PART_DOCUMENTS = 1 << 18
"""Documents that one thread works on at a time. What is drawn at random depends on it."""

_UNCOUNTED = (
    "data.mix.components.*.rehydrate needs it. Build the corpus with deduplication.counts and pack this component again (pairs "
    "have none: a document is made of many), or remove `rehydrate`"
)
_SPLITS = {"train": False, "validation": True}


class Part(NamedTuple):
    """Consecutive documents of one shard: indices from `start` to `stop`, and the byte of the shard at which they
    begin."""

    start: int
    stop: int
    shard: int
    offset: int


class Counts(NamedTuple):
    """By language code, of the documents that training may see (int64): their number, their tokens, and the tokens of
    the longest."""

    documents: np.ndarray
    tokens: np.ndarray
    longest: np.ndarray


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
        times: uint8 [documents], how often each is read while others are read once; None where all are read equally often.
    """

    component: Component
    languages: list[str]
    language: np.ndarray
    tokens: np.ndarray
    validation: np.ndarray
    first: np.ndarray
    consumed: np.ndarray | None = None
    times: np.ndarray | None = None

    def training(self, part: Part, reading: int = 0) -> np.ndarray:
        """Which documents of a part training may see: those set apart for validation and those that an earlier phase
        consumed are not. `reading` counts how often they are read while others are read once."""
        mine = ~self.validation[part.start : part.stop]
        if self.times is not None and reading:
            mine &= self.times[part.start : part.stop] > reading
        if self.consumed is not None:
            mine &= ~self.consumed[part.start : part.stop]
        return mine

    @cached_property
    def parts(self) -> list[Part]:
        """All documents, in order, in parts of at most `PART_DOCUMENTS`."""
        parts = []
        for shard, (begin, end) in enumerate(
            zip(self.first[:-1].tolist(), self.first[1:].tolist(), strict=True)
        ):
            offset = 0
            for start in range(begin, end, PART_DOCUMENTS):
                stop = min(start + PART_DOCUMENTS, end)
                parts.append(Part(start, stop, shard, offset))
                offset += int(self.tokens[start:stop].sum(dtype=np.int64)) * self.component.dtype.itemsize
        return parts

    @cached_property
    def readings(self) -> list[tuple[Part, int]]:
        """Every part, and again for each further time that any of its documents is read while others are read once."""
        return [(part, reading) for part in self.parts for reading in range(self.most_times(part))]

    def most_times(self, part: Part) -> int:
        """How often the most repeated document of a part is read while others are read once."""
        return 1 if self.times is None else int(self.times[part.start : part.stop].max())

    @cached_property
    def counts(self) -> Counts:
        """What training may see of every language."""
        size = len(self.languages)
        result = Counts(*(np.zeros(size, np.int64) for _ in range(3)))

        def count(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            mine = self.training(part)
            code = self.language[part.start : part.stop][mine]
            tokens = self.tokens[part.start : part.stop][mine]
            longest = np.zeros(size, np.int64)
            if not len(code):
                return longest, longest, longest
            # Documents of one language mostly follow each other.
            begins = np.append(0, np.flatnonzero(code[1:] != code[:-1]) + 1)
            code, documents = code[begins], np.diff(begins, append=len(code))
            np.maximum.at(longest, code, np.maximum.reduceat(tokens, begins))
            sums = np.add.reduceat(tokens, begins, dtype=np.int64)
            return np.bincount(code, documents, size), np.bincount(code, sums, size), longest

        for documents, tokens, longest in in_order(count, self.parts):
            result.documents[:] += documents.astype(np.int64)
            result.tokens[:] += tokens.astype(np.int64)
            np.maximum(result.longest, longest, out=result.longest)
        return result

    @cached_property
    def _starts(self) -> np.ndarray:
        """Tokens before each document within the component, int64."""
        starts = np.zeros(len(self.tokens) + 1, np.int64)
        np.cumsum(self.tokens, out=starts[1:])
        return starts

    @cached_property
    def _validation_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Documents set apart for validation, grouped by language, and where each group begins."""
        documents = np.flatnonzero(self.validation)
        code = self.language[documents]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(code, minlength=len(self.languages)))])
        return documents[np.argsort(code, kind="stable")], bounds

    def validation_of(self, language: str) -> np.ndarray:
        """Indices of a language's documents that are set apart for validation, ascending (int64)."""
        if language not in self.languages:
            return np.zeros(0, np.int64)
        code = self.languages.index(language)
        order, bounds = self._validation_order
        return order[bounds[code] : bounds[code + 1]]

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


def load_catalogues(
    components: Sequence[Component],
    consumed: Sequence[Consumed] = (),
    rehydrate: Mapping[str, Sequence[Rehydrated]] | None = None,
) -> dict[str, Catalogue]:
    """Reads the documents of all components, by name; `consumed` are the recipe's earlier phases, `rehydrate` says by
    component how often repeated documents are read.

    Raises:
        UserError: a table is damaged, or disagrees with the manifest; an earlier mix is missing, read another store,
            or has fewer samples than the recipe says were consumed.
    """
    rehydrate = rehydrate or {}
    catalogues = {
        component.name: load_catalogue(component, rehydrate.get(component.name, ()))
        for component in components
    }
    return _without_consumed(catalogues, consumed) if consumed else catalogues


def load_catalogue(component: Component, rehydrate: Sequence[Rehydrated] = ()) -> Catalogue:
    """Reads the documents of a component; `rehydrate` says how often repeated ones are read.

    Raises:
        UserError: a table is damaged, or disagrees with the manifest; documents are to be rehydrated that have no counts of
            their copies.
    """
    first = np.cumsum([0, *(shard.rows for shard in component.shards)])
    languages = sorted(set(component.sources["language"].to_pylist()))
    if len(languages) > np.iinfo(np.uint16).max:
        raise UserError(
            f"{component.folder}: {len(languages)} languages; a component may have at most 65,535"
        )
    codes = {name: code for code, name in enumerate(languages)}
    total = int(first[-1])
    catalogue = Catalogue(
        component,
        languages,
        np.empty(total, np.uint16),
        np.empty(total, np.int32),
        np.empty(total, bool),
        first,
        times=np.empty(total, np.uint8) if rehydrate else None,
    )

    def read(task: tuple[Shard, list[int], int]) -> None:
        shard, groups, position = task
        for batch in _batches(shard.documents_path, groups, counted=catalogue.times is not None):
            stop = position + len(batch)
            catalogue.language[position:stop] = _codes(shard.documents_path, batch, "language", codes)
            catalogue.tokens[position:stop] = batch["tokens"].to_numpy()
            catalogue.validation[position:stop] = _codes(shard.documents_path, batch, "split", _SPLITS)
            if catalogue.times is not None:
                catalogue.times[position:stop] = _times(shard.documents_path, batch["copies"], rehydrate)
            position = stop

    def tasks() -> Iterator[tuple[Shard, list[int], int]]:
        for shard, begin in zip(component.shards, first.tolist(), strict=False):
            position = begin
            for groups, rows in _row_groups(shard):
                yield shard, groups, position
                position += rows

    for _ in in_order(read, tasks()):
        pass
    for shard, begin, end in zip(component.shards, first.tolist(), first[1:].tolist(), strict=False):
        size = int(catalogue.tokens[begin:end].sum(dtype=np.int64)) * component.dtype.itemsize
        if size != shard.bytes:
            raise UserError(
                f"{shard.documents_path}: its documents hold {size} bytes, but {shard.bin_path.name} has "
                f"{shard.bytes}; run `emma pack verify`"
            )
    return catalogue


def _row_groups(shard: Shard) -> list[tuple[list[int], int]]:
    """Consecutive row groups of a shard's table and their rows, about `PART_DOCUMENTS` in each.

    Raises:
        UserError: the table cannot be read, or has another number of rows than the manifest says.
    """
    path = shard.documents_path
    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `emma pack verify`") from None
    if sum(sizes) != shard.rows:
        raise UserError(
            f"{path}: holds {sum(sizes)} documents, but the manifest says {shard.rows}; run `emma pack verify`"
        )
    found: list[tuple[list[int], int]] = []
    for group, rows in enumerate(sizes):
        if found and found[-1][1] + rows <= PART_DOCUMENTS:
            found[-1] = ([*found[-1][0], group], found[-1][1] + rows)
        else:
            found.append(([group], rows))
    return found


def _times(path: Path, copies: pa.Array, rehydrate: Sequence[Rehydrated]) -> np.ndarray:
    """How often documents with these numbers of copies are read while others are read once (uint8)."""
    if copies.null_count:
        raise UserError(f"{path}: a document has no number of `copies`; {_UNCOUNTED}")
    entries = sorted(rehydrate, key=lambda entry: entry.copies)
    times = np.array([1, *(entry.times for entry in entries)], np.uint8)
    return times[np.searchsorted([entry.copies for entry in entries], copies.to_numpy(), side="right")]


def _batches(path: Path, groups: Sequence[int], *, counted: bool) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, read_dictionary=["language", "split"]) as file:
            columns = ["language", "tokens", "split"]
            if counted and "copies" not in file.schema_arrow.names:
                raise UserError(f"{path}: its documents have no column `copies`; {_UNCOUNTED}")
            columns += ["copies"] if counted else []
            yield from file.iter_batches(PART_DOCUMENTS, groups, columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `emma pack verify`") from None


def _codes(path: Path, batch: pa.RecordBatch, name: str, codes: Mapping[str, int]) -> np.ndarray:
    """Values of a dictionary column by a table of all names."""
    column = batch[name]
    names = column.dictionary.to_pylist()
    if unknown := [each for each in names if each not in codes]:
        raise UserError(
            f"{path}: a document's {name} is {unknown[0]!r}, which sources.parquet doesn't count; run "
            "`emma pack verify`"
        )
    return np.array([codes[each] for each in names])[column.indices.to_numpy(zero_copy_only=False)]


def _without_consumed(
    catalogues: Mapping[str, Catalogue], consumed: Sequence[Consumed]
) -> dict[str, Catalogue]:
    """The catalogues with the documents marked that earlier phases read: those of which a consumed sample holds any
    token."""
    marked = {
        name: replace(catalogue, consumed=np.zeros(len(catalogue.tokens), bool))
        for name, catalogue in catalogues.items()
    }
    for entry in consumed:
        mix = read_mix(Path(entry.mix))
        for name, fingerprint in mix.components.items():
            if name in catalogues and catalogues[name].component.fingerprint != fingerprint:
                raise UserError(
                    f"data.mix.exclude_consumed: {entry.mix} was built from another {name!r} than "
                    f"{catalogues[name].component.folder}, so its documents cannot be matched; build this mix "
                    "from the same store"
                )
        info = read_dataset_info(mix.train)
        samples = info.samples if entry.samples is None else entry.samples
        if samples > info.samples:
            raise UserError(
                f"data.mix.exclude_consumed: {entry.mix} has {info.samples} samples, so {samples} cannot be "
                "consumed"
            )
        with NpyReader(mix.train / "samples.npy") as starts, NpyReader(mix.train / "rows.npy") as file:
            row, into = starts.read(samples, samples + 1)[0].tolist()
            for rows in file.chunks(row + (1 if into else 0)):
                offsets = rows["offset"][np.argsort(rows["shard"], kind="stable")]
                edges = np.cumsum(np.bincount(rows["shard"], minlength=len(info.shards)))
                for shard, own in zip(info.shards, np.split(offsets, edges[:-1]), strict=True):
                    if shard.component in marked and len(own):
                        read = catalogues[shard.component].documents_at(shard.number, own)
                        _mask(marked[shard.component])[read] = True
    return marked


def _mask(catalogue: Catalogue) -> np.ndarray:
    assert catalogue.consumed is not None
    return catalogue.consumed
