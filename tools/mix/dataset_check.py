"""Checks one dataset of a mix: every row, sample and index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from emma.base.arrays import CHUNK_ROWS, NpyReader
from emma.base.errors import UserError
from emma.base.progress import progress
from emma.base.threads import in_order
from emma.tools.mix.catalogue import Catalogue
from emma.tools.mix.index import IndexReader
from emma.tools.mix.layout import ROW, DatasetInfo, MixInfo
from emma.tools.mix.order import Units
from emma.tools.mix.rehydrate import rehydration_faults
from emma.tools.pack.store import Component

__all__ = ["DatasetCheck"]

_SAMPLES = 1 << 17


@dataclass
class _Piece:
    """What one chunk of rows holds: rows and tokens by source, rows by shard, documents begun by component, faults."""

    rows: np.ndarray
    tokens: np.ndarray
    shards: np.ndarray
    documents: list[tuple[str, np.ndarray]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class DatasetCheck:
    """Faults of one dataset folder. Reads it piece by piece: memory does not grow with it, apart from four bytes for each
    document of the store.

    Args:
        mix: the mix.
        info: its dataset.
        catalogues: by component; those of a damaged store are left out.

    Raises:
        ValueError: an array is not what its header says.
    """

    def __init__(self, mix: MixInfo, info: DatasetInfo, catalogues: Mapping[str, Catalogue]) -> None:
        self.mix, self.info, self.catalogues = mix, info, catalogues
        self.folder = info.folder
        self.train = info.folder == mix.train
        self.units = Units(info)
        self._width = np.dtype(info.dtype).itemsize
        languages = [source.language for source in info.sources]
        self._codes = {}
        for name, catalogue in catalogues.items():
            codes = {language: code for code, language in enumerate(catalogue.languages)}
            self._codes[name] = np.array([codes.get(language, -1) for language in languages], np.int64)

    def faults(self) -> Iterator[str]:
        """Yields what is wrong; fills `units` on the way."""
        mix, info = self.mix, self.info
        if info.mix_fingerprint != mix.fingerprint:
            yield f"{self.folder / 'dataset.json'}: belongs to another mix (fingerprint {info.mix_fingerprint[:12]})"
        promised = mix.samples if self.train else mix.groups[self.folder.name]["samples"]
        if (info.samples, info.sequence_length) != (promised, mix.sequence_length):
            yield (
                f"{self.folder / 'dataset.json'}: {info.samples} samples of {info.sequence_length} tokens, but "
                f"mix.json promises {promised} of {mix.sequence_length}"
            )
        with NpyReader(self.folder / "rows.npy") as rows, NpyReader(self.folder / "samples.npy") as samples:
            if rows.dtype != ROW or len(rows) != info.rows:
                yield f"{self.folder / 'rows.npy'}: {len(rows)} rows of {rows.dtype}, but dataset.json says {info.rows}"
                return
            broken = False
            for fault in self._row_faults(rows):
                broken = True
                yield fault
            if broken:
                return
            if samples.shape != (info.samples + 1, 2):
                yield f"{self.folder / 'samples.npy'}: shape {samples.shape}, but dataset.json says {info.samples} samples"
            elif info.packing == "concatenate":
                yield from self._stream_faults(rows, samples)
            else:
                yield from self._packed_faults(rows, samples)
            yield from self._index_faults(rows)

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _row_faults(self, rows: NpyReader) -> Iterator[str]:
        """Rows within shards, at documents, of the right source and split; counts as recorded; repeated
        evenly."""
        info, path = self.info, self.folder / "rows.npy"
        counts, tokens = (np.zeros(len(info.sources), np.int64) for _ in range(2))
        shards = np.zeros(len(info.shards), np.int64)
        times = {
            name: np.zeros(len(catalogue.tokens), np.int32) for name, catalogue in self.catalogues.items()
        }
        starts = range(0, len(rows), CHUNK_ROWS)
        pieces = in_order(lambda start: self._piece(rows, start), starts)
        for piece in progress(pieces, total=len(starts), unit="chunk", desc=f"verify {self.folder.name}"):
            yield from piece.faults
            if piece.faults:
                return
            counts += piece.rows
            tokens += piece.tokens
            shards += piece.shards
            for name, documents in piece.documents:
                np.add.at(times[name], documents, 1)
        for number, source in enumerate(info.sources):
            if (source.rows, source.tokens) != (int(counts[number]), int(tokens[number])):
                yield (
                    f"{path}: {source.component}/{source.language} has {int(counts[number])} rows and "
                    f"{int(tokens[number])} tokens, but dataset.json says {source.rows} and {source.tokens}"
                )
        for shard, found in zip(info.shards, shards.tolist(), strict=True):
            if found != shard.rows:
                yield f"{self.folder / 'dataset.json'}: {shard.name} has {found} rows, not {shard.rows}"
        for name, read in times.items():
            yield from self._document_counts(name, read)

    def _piece(self, reader: NpyReader, start: int) -> _Piece:
        info, path = self.info, self.folder / "rows.npy"
        rows = reader.read(start, min(start + CHUNK_ROWS, len(reader)))
        sizes = np.array([shard.bytes for shard in info.shards], np.int64)
        empty = np.zeros(0, np.int64)
        if (rows["shard"] >= len(sizes)).any() or (rows["source"] >= len(info.sources)).any():
            fault = f"{path}: rows from {start} name shards or sources that dataset.json doesn't list"
            return _Piece(empty, empty, empty, faults=[fault])
        ends = rows["offset"] + rows["tokens"].astype(np.int64) * self._width
        wrong = (rows["offset"] < 0) | (rows["tokens"] < 1) | (rows["offset"] % self._width != 0)
        wrong |= ends > sizes[rows["shard"]]
        if wrong.any():
            at = int(np.argmax(wrong))
            shard = int(rows["shard"][at])
            fault = (
                f"{path}: row {start + at} takes {int(rows['tokens'][at])} tokens at byte {int(rows['offset'][at])} of "
                f"{info.shards[shard].name}, which has {int(sizes[shard])} bytes"
            )
            return _Piece(empty, empty, empty, faults=[fault])
        piece = _Piece(
            np.bincount(rows["source"], minlength=len(info.sources)),
            np.bincount(rows["source"], rows["tokens"], len(info.sources)).astype(np.int64),
            np.bincount(rows["shard"], minlength=len(sizes)),
        )
        order = np.argsort(rows["shard"], kind="stable")
        bounds = np.concatenate([[0], np.cumsum(piece.shards)])
        for number in np.flatnonzero(piece.shards).tolist():
            self._documents(piece, rows, order[bounds[number] : bounds[number + 1]], number, start)
        return piece

    def _documents(self, piece: _Piece, rows: np.ndarray, mine: np.ndarray, number: int, start: int) -> None:
        """Checks the rows `mine` of one shard against its documents."""
        info, path = self.info, self.folder / "rows.npy"
        shard = info.shards[number]
        catalogue = self.catalogues.get(shard.component)
        if catalogue is None:
            return  # the store's fault is already reported
        offsets, lengths = rows["offset"][mine], rows["tokens"][mine].astype(np.int64)
        at = catalogue.documents_at(shard.number, offsets)
        whole = catalogue.rows(at, 0, 0)
        begin = (offsets - whole["offset"]) // self._width
        fits = begin + lengths <= whole["tokens"]
        if info.packing == "concatenate":
            last = start + mine == info.rows - 1
            fits &= (begin == 0) & ((lengths == whole["tokens"]) | last)
        if not fits.all():
            piece.faults.append(
                f"{path}: row {start + int(mine[np.argmin(fits)])} is not a whole document of {shard.name}"
            )
            return
        right = self._codes[shard.component][rows["source"][mine]] == catalogue.language[at]
        if not right.all():
            row = int(mine[np.argmin(right)])
            language = catalogue.languages[int(catalogue.language[at[np.argmin(right)]])]
            piece.faults.append(
                f"{path}: row {start + row} counts as {info.sources[int(rows['source'][row])].language}, but its document "
                f"is {language}"
            )
        if (catalogue.validation[at] == self.train).any():
            piece.faults.append(f"{path}: rows from {start} hold documents of the other split")
        piece.documents.append((shard.component, at[begin == 0]))

    def _document_counts(self, name: str, times: np.ndarray) -> Iterator[str]:
        """Documents of a source are read equally often, to within one, or as often as their copies say; and as many as
        recorded."""
        if not self.train:
            return
        catalogue, path = self.catalogues[name], self.folder / "rows.npy"
        if catalogue.times is not None:
            plan = pq.read_table(self.mix.folder / "plan.parquet").to_pylist()
            for fault in rehydration_faults(
                catalogue, times, plan, self.mix.seed, consumed=self.mix.consumed
            ):
                yield f"{path}: {fault}"
        size = len(catalogue.languages)
        # Documents that an earlier phase consumed, or that a partial pass left out, are never read.
        least, most = np.full(size, np.iinfo(np.int32).max), np.zeros(size, np.int32)
        documents = np.zeros(size, np.int64)
        for part in catalogue.parts:
            here = times[part.start : part.stop]
            read = here > 0
            code, here = catalogue.language[part.start : part.stop][read], here[read]
            np.minimum.at(least, code, here)
            np.maximum.at(most, code, here)
            documents += np.bincount(code, here, size).astype(np.int64)
        for number, language in enumerate(catalogue.languages):
            if catalogue.times is None and int(most[number]) - int(least[number]) > 1:
                yield (
                    f"{path}: documents of {name}/{language} are seen {int(least[number])} to {int(most[number])} times"
                )
        for source in self.info.sources:
            if source.component == name:
                found = int(documents[catalogue.languages.index(source.language)])
                if found != source.documents:
                    yield (
                        f"{path}: {name}/{source.language} has {found} documents, but dataset.json says "
                        f"{source.documents}"
                    )

    # ---- samples ----------------------------------------------------------------------------------------------------

    def _stream_faults(self, rows: NpyReader, samples: NpyReader) -> Iterator[str]:
        """Samples of one stream follow each other without gaps, one sequence length apart."""
        info, path = self.info, self.folder / "samples.npy"
        length = info.sequence_length
        before = number = 0
        last = np.zeros(2, np.int64)
        for chunk in range(0, len(rows), CHUNK_ROWS):
            mine = rows.read(chunk, min(chunk + CHUNK_ROWS, len(rows)))
            self.units.add(mine, np.arange(chunk, chunk + len(mine)))
            tokens = mine["tokens"].astype(np.int64)
            ends = before + np.cumsum(tokens)
            begins = np.arange(-(-before // length) * length, int(ends[-1]), length)
            row = np.searchsorted(ends, begins, side="right")
            expected = np.stack([row + chunk, begins - (ends[row] - tokens[row])], axis=1)
            found = samples.read(number, min(number + len(begins), len(samples)))
            wrong = np.flatnonzero((expected[: len(found)] != found).any(axis=1))
            if len(wrong) or len(found) < len(begins):
                at = int(wrong[0]) if len(wrong) else len(found)
                what = f"at row {found[at][0]}, token {found[at][1]}" if len(wrong) else "nowhere"
                yield (
                    f"{path}: sample {number + at} begins {what}, but {length} tokens after the one before it are row "
                    f"{expected[at][0]}, token {expected[at][1]}"
                )
                return
            before, number = int(ends[-1]), number + len(begins)
            last = np.array([chunk + len(mine) - 1, int(tokens[-1]) - 1])
        labels = max(before - 1, 0)
        # If the last token, which is only a label, would begin a sample, its entry is the list's last one.
        samples_made = -(-labels // length)
        if samples_made != info.samples or not np.array_equal(
            samples.read(info.samples, info.samples + 1)[0], last
        ):
            yield f"{path}: {info.samples} samples, which do not end with the last token of {before}"
        if self.train and labels % length:
            yield f"{path}: the last sample spans {labels % length} tokens, but training has no partial samples"
        if labels != info.label_tokens:
            yield f"{path}: {labels} labels, but dataset.json says {info.label_tokens}"

    def _packed_faults(self, rows: NpyReader, samples: NpyReader) -> Iterator[str]:
        """Packed samples follow each other without gaps, and none is too long or empty."""
        info, path = self.info, self.folder / "samples.npy"
        labels = 0
        for start in range(0, info.samples, _SAMPLES):
            begins = samples.read(start, min(start + _SAMPLES, info.samples) + 1)
            row = begins[:, 0]
            first, end = int(row[0]), int(row[-1])
            out = (np.diff(row) < 1).any() or end > len(rows) or (start == 0 and first != 0)
            if out or begins[:, 1].any() or (start + _SAMPLES >= info.samples and end != len(rows)):
                yield f"{path}: samples from {start} begin at rows that don't follow each other, or don't exist"
                return
            mine = rows.read(first, end)
            sizes = np.diff(row)
            self.units.add(mine, start + np.repeat(np.arange(len(sizes)), sizes))
            spans = np.add.reduceat(mine["tokens"], row[:-1] - first, dtype=np.int64)
            wrong = (spans < 2) | (spans > info.sequence_length + 1)
            if wrong.any():
                at = int(np.argmax(wrong))
                yield (
                    f"{path}: sample {start + at} holds {int(spans[at])} tokens, but there is room for "
                    f"{info.sequence_length + 1}"
                )
            labels += int(spans.sum()) - len(spans)
        if labels != info.label_tokens:
            yield f"{path}: {labels} labels, but dataset.json says {info.label_tokens}"

    # ---- indices ----------------------------------------------------------------------------------------------------

    def _index_faults(self, rows: NpyReader) -> Iterator[str]:
        """Every `.idx` holds the rows of its shard in their order, beside a link to that shard."""
        info = self.info
        indices: dict[int, IndexReader] = {}
        for number, shard in enumerate(info.shards):
            if not shard.rows:
                continue
            path = self.folder / f"{shard.name}.idx"
            yield from self._link_faults(number)
            try:
                index = IndexReader(path)
            except (UserError, OSError) as error:
                yield f"{path}: {error}"
                continue
            if index.dtype != np.dtype(info.dtype):
                yield f"{path}: says that tokens are {index.dtype}, but they are {info.dtype}"
            if index.rows != shard.rows or not _counts_up(index):
                yield f"{path}: doesn't hold the rows of {shard.name} in their order"
                continue
            indices[number] = index
        before = np.zeros(len(info.shards), np.int64)
        for mine in rows.chunks():
            order = np.argsort(mine["shard"], kind="stable")
            counts = np.bincount(mine["shard"], minlength=len(before))
            bounds = np.concatenate([[0], np.cumsum(counts)])
            for number in np.flatnonzero(counts).tolist():
                if number not in indices:
                    continue
                here = order[bounds[number] : bounds[number + 1]]
                there = int(before[number]), int(before[number] + counts[number])
                same = np.array_equal(indices[number].lengths(*there), mine["tokens"][here])
                if not same or not np.array_equal(indices[number].offsets(*there), mine["offset"][here]):
                    name = info.shards[number].name
                    yield f"{self.folder / name}.idx: doesn't hold the rows of {name} in their order"
                    del indices[number]
            before += counts

    def _link_faults(self, number: int) -> Iterator[str]:
        shard = self.info.shards[number]
        link: Path = self.folder / f"{shard.name}.bin"
        catalogue = self.catalogues.get(shard.component)
        component: Component | None = catalogue.component if catalogue is not None else None
        if (fault := shard.fault(self.folder)) is not None:
            yield fault
        elif component is not None and link.resolve() != component.shards[shard.number].bin_path.resolve():
            yield f"{link}: leads to {link.resolve()}, not to the store's {component.shards[shard.number].bin_path}"


def _counts_up(index: IndexReader) -> bool:
    """Whether boundary i is i: every row is a document."""
    pieces = ((at, min(at + CHUNK_ROWS, index.rows + 1)) for at in range(0, index.rows + 1, CHUNK_ROWS))
    return all(np.array_equal(index.boundaries(*piece), np.arange(*piece)) for piece in pieces)
