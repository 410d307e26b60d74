"""Packs one work unit: reads its segments, makes documents, encodes them, writes shards of a set size."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from emma.base.manifest import MANIFEST_NAME, FileRecord
from emma.base.staging import WrittenMeanwhileError, staged_folder
from emma.base.writers import sole_writer
from emma.recipes.schema.data import Pack, PackComponent
from emma.tools.pack.bad_lines import QUARANTINE, BadLines
from emma.tools.pack.columns import as_array, encode_keys, join
from emma.tools.pack.documents import DocumentMaker
from emma.tools.pack.encoded import Bounded
from emma.tools.pack.encoder import Encoder
from emma.tools.pack.engine import REFERENCE
from emma.tools.pack.inputs import Unit
from emma.tools.pack.pieces import pieces_of
from emma.tools.pack.records import BATCH_BYTES, read_segments
from emma.tools.pack.refusal import UNIT_FILE, is_packed, refusal_of, refuse_engine, unit_name
from emma.tools.pack.sample import PACK_SEED, Draw, WrongIdsError, compare
from emma.tools.pack.shard import ShardWriter
from emma.tools.pack.store import token_dtype

__all__ = ["pack_unit", "unit_documents"]


def pack_unit(
    unit: Unit,
    name: str,
    component: PackComponent,
    pack: Pack,
    encoder: Encoder,
    folder: Path,
    share: float = 0.0,
) -> None:
    """Packs a unit into `folder/unit-NNNNNN/`, which appears whole, unless another process has packed it
    already.

    The folder's `unit.json` holds counts, sources, shards, checksums, the engine, and the languages that the gate
    refused here. If the engine turns out to give wrong ids, it is refused for the component
    (`refusal.py`), and the reference packs the unit.

    Args:
        unit: what to read.
        name: the component's name.
        component: its settings.
        pack: the `pack` section.
        encoder: engines, with the verdicts of the component's gate.
        folder: the component's `.pack` folder.
        share: of the documents that are encoded with the reference too.

    Raises:
        InUseError: another process is packing the unit.
        UserError: bad input; names file, line or row, and field.
    """
    target = folder / unit_name(unit.index)
    with sole_writer(target) as lock:
        # In this order: when a component is finished, its manifest is written before its units are removed.
        if is_packed(folder, unit.index) or (folder.parent / MANIFEST_NAME).is_file():
            return
        if target.is_dir():
            shutil.rmtree(target)  # its engine was refused later
        while True:
            if refusal_of(folder, encoder.name):
                encoder = replace(encoder, name=REFERENCE)
            try:
                with staged_folder(target, lock=lock) as partial:
                    pieces = pieces_of(encoder.tokenizer) if share else None
                    if pieces is not None:
                        pieces.load(folder)
                    report = _write_unit(unit, name, component, pack, encoder, partial, share)
                    if pieces is not None:
                        pieces.save(folder, unit.index)
                    if refusal_of(folder, encoder.name):
                        raise WrongIdsError  # found in another unit meanwhile
                    (partial / UNIT_FILE).write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
            except WrongIdsError as error:
                if error.args:
                    refuse_engine(folder, encoder.name, str(error))
                    print(
                        f"{name}: {error}. The engine is refused: the reference encodes this component, also what "
                        f"{encoder.name} has encoded of it",
                        file=sys.stderr,
                        flush=True,
                    )
                continue
            except WrittenMeanwhileError:
                pass  # on another machine, with the same bytes
            return


def _write_unit(
    unit: Unit, name: str, component: PackComponent, pack: Pack, encoder: Encoder, folder: Path, share: float
) -> dict[str, Any]:
    """Writes the shards of a unit into `folder`; returns what `unit.json` says."""
    refused_before = set(encoder.refused)
    maker = DocumentMaker(component, pack)
    writer = _UnitWriter(folder, name, pack, encoder, Draw(PACK_SEED, unit.index, share))
    inputs: list[FileRecord] = []
    bad = BadLines(component.max_bad_lines)
    try:
        for documents in unit_documents(unit, maker, bad, inputs):
            writer.add(documents)
            del documents  # before the next batch is read
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    if bad.found:
        (folder / QUARANTINE).write_bytes(bad.to_jsonl())
    return {
        "index": unit.index,
        "bytes_in": unit.bytes,
        "counts": {
            "in": maker.records,
            "kept": writer.documents,
            "removed_by": dict(sorted((Counter(maker.removed) + writer.removed).items())),
            "documents_cut": writer.cut,
            "tokens": writer.tokens,
            "bad_lines": len(bad.found),
        },
        "engine": encoder.name,
        "by_fast_engine": writer.by_fast_engine,
        "encoded_twice": writer.encoded_twice,
        "unknown": dict(sorted(writer.unknown.items())),
        "first_bad_line": bad.found[0] if bad.found else None,
        "sources": [[*key, *map(int, counts)] for key, counts in sorted(writer.sources.items())],
        "shards": writer.shards,
        "refused": sorted(encoder.refused - refused_before),
        "inputs": [vars(record) for record in inputs],
    }


def unit_documents(
    unit: Unit, maker: DocumentMaker, bad: BadLines, inputs: list[FileRecord] | None = None
) -> Iterator[pa.Table]:
    """Yields the documents of a unit in order, in tables of about a batch.

    Args:
        unit: what to read.
        maker: makes documents of records.
        bad: gets unusable records.
        inputs: gets each file that begins here, with its SHA-256.

    Raises:
        UserError: bad input.
    """
    waiting: list[pa.Table] = []
    size = 0
    for table in _unit_tables(unit, maker, bad, inputs):
        if waiting and table.column_names != waiting[0].column_names:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
        waiting.append(table)
        size += table["text"].nbytes
        if size >= BATCH_BYTES // 2:  # whose text is almost a batch is not copied once more
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _unit_tables(
    unit: Unit, maker: DocumentMaker, bad: BadLines, inputs: list[FileRecord] | None
) -> Iterator[pa.Table]:
    for batch in read_segments(
        unit.segments, *maker.fields, batch_bytes=maker.batch_bytes, bad=bad, records=inputs
    ):
        yield from maker.add(batch)
    yield from maker.finish()


@dataclass
class _UnitWriter:
    """Encodes documents, appends them to shards and counts them."""

    folder: Path
    component: str
    pack: Pack
    encoder: Encoder
    draw: Draw
    removed: Counter[str] = field(default_factory=Counter)
    sources: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    cut: int = 0
    by_fast_engine: int = 0
    encoded_twice: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    _shard: ShardWriter | None = None

    def __post_init__(self) -> None:
        tokenizer = self.encoder.tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.begin_of_text_id, self.end_of_text_id = tokenizer.begin_of_text_id, tokenizer.end_of_text_id

    @property
    def shard_bytes(self) -> int:
        """Largest shard."""
        return self.pack.shard_mib << 20

    def add(self, documents: pa.Table) -> None:
        """Encodes and writes a table of documents."""
        documents = documents.combine_chunks()
        texts, languages = as_array(documents["text"]), as_array(documents["language"])
        bounded = self.encoder.encode_bounded(texts, languages)
        self.by_fast_engine += int(np.count_nonzero(~self.encoder.by_reference(languages)))
        self.encoded_twice += compare(documents, bounded, self.draw.next(len(texts)), self.encoder)
        lengths, starts = bounded.lengths, bounded.starts
        kept = lengths >= self.pack.min_tokens
        if not kept.all():
            self.removed["short"] += int((~kept).sum())
        limit = self.pack.max_tokens
        long = np.zeros(len(lengths), bool) if limit is None else lengths > limit
        if long.any():
            if self.pack.long_documents == "split":
                self.cut += int(long.sum())
            elif self.pack.long_documents == "drop":
                self.removed["long"] += int(long.sum())
                kept &= ~long
        table = documents.drop_columns(["text"])
        sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
        if not kept.all():
            rows = np.flatnonzero(kept)
            table, sizes, starts, lengths = table.take(rows), sizes[rows], starts[rows], lengths[rows]
        if limit is not None and (lengths > limit).any():
            table, sizes, starts, lengths = _cut(table, sizes, starts, lengths, limit)
        if not len(lengths):
            return
        if len(lengths) < len(kept) or long.any():
            bounded = Bounded.of(bounded.ids, starts, lengths, self.begin_of_text_id, self.end_of_text_id)
        self._count_unknown(bounded, table["language"])
        self._count(table, np.diff(bounded.ends, prepend=0), sizes)
        # The same bits as of int32, as long as ids are below 2³¹.
        ids = bounded.ids.view(self.dtype) if self.dtype.itemsize == 4 else bounded.ids.astype(self.dtype)
        self._write(ids, bounded.ends, table, sizes)

    def close(self) -> None:
        """Finishes the last shard."""
        if self._shard is not None:
            self.shards.append(self._shard.close())
            self._shard = None

    def abandon(self) -> None:
        """Closes files after an error."""
        if self._shard is not None:
            self._shard.abandon()

    def _count_unknown(self, bounded: Bounded, languages: pa.ChunkedArray) -> None:
        """Counts the tokens for what the vocabulary lacks, by language."""
        if self.encoder.tokenizer.unknown_id is None:
            return
        places = np.flatnonzero(bounded.ids == self.encoder.tokenizer.unknown_id)
        if not len(places):
            return
        before = np.searchsorted(places, bounded.starts), np.searchsorted(places, bounded.ends - 1)
        counts = pa.table({"language": as_array(languages), "unknown": before[1] - before[0]})
        for row in counts.group_by("language").aggregate([("unknown", "sum")]).to_pylist():
            if row["unknown_sum"]:
                self.unknown[row["language"]] += row["unknown_sum"]

    def _count(self, table: pa.Table, lengths: np.ndarray, sizes: np.ndarray) -> None:
        indices, keys = encode_keys(table, ("language", "split"))
        codes = indices.to_numpy(zero_copy_only=False)
        # (Sums of a batch are exact as floats.)
        columns = [np.bincount(codes, weights, len(keys)) for weights in (None, lengths, sizes)]
        totals = np.stack(columns, axis=1).astype(np.int64)
        for (language, split), counts in zip(keys, totals, strict=True):
            self.sources[language, split] = self.sources.get((language, split), 0) + counts
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())

    def _write(self, tokens: np.ndarray, ends: np.ndarray, table: pa.Table, sizes: np.ndarray) -> None:
        """Appends documents; opens the next shard where one would exceed its size, or has other columns."""
        limit = self.shard_bytes // self.dtype.itemsize
        counted = "copies" in table.column_names
        if self._shard is not None and self._shard.counted != counted:
            self.close()
        done, position = 0, 0
        while done < len(ends):
            if self._shard is None:
                self._shard = ShardWriter(
                    self.folder,
                    len(self.shards),
                    self.component,
                    self.dtype,
                    self.begin_of_text_id,
                    self.end_of_text_id,
                    counted=counted,
                )
            room = limit - self._shard.tokens
            stop = int(np.searchsorted(ends, position + room, side="right"))
            if stop == done:
                if self._shard.tokens:
                    self.close()
                    continue
                stop = done + 1  # a document above the size gets its own shard
            piece = slice(done, stop)
            self._shard.append(
                tokens[position : ends[stop - 1]],
                np.diff(ends[piece], prepend=position),
                table.slice(done, stop - done),
                sizes[piece],
            )
            done, position = stop, int(ends[stop - 1])


def _cut(
    table: pa.Table, sizes: np.ndarray, starts: np.ndarray, lengths: np.ndarray, limit: int
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts documents above `limit` tokens into as few pieces as possible, of nearly equal length.

    Bytes of text are divided in proportion to tokens; ids get the suffixes `#0`, `#1`, ...
    """
    pieces = -(-lengths // limit)
    rows = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    count, length, size = pieces[rows], lengths[rows], sizes[rows]
    first, after = number * length // count, (number + 1) * length // count
    cut_sizes = (number + 1) * size // count - number * size // count
    table = table.take(rows)
    suffixes = pa.array([f"#{n}" for n in number.tolist()], pa.large_string())
    ids = join(table["document_id"], suffixes)
    ids = pc.if_else(pa.array(count > 1), ids, table["document_id"])
    table = table.set_column(table.column_names.index("document_id"), "document_id", ids)
    return table, cut_sizes, starts[rows] + first, after - first
