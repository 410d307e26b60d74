"""Records → documents, by kind: text, sentence pairs, instruction data, code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emma.base.errors import UserError
from emma.recipes.schema.data import Pack, PackComponent
from emma.tools.pack.columns import as_array, codes_of, encode_keys, join
from emma.tools.pack.inputs import InputFile
from emma.tools.pack.languages import pair_labels, split_pair
from emma.tools.pack.records import BATCH_BYTES, COPIES, Batch

__all__ = ["DOCUMENT_COLUMNS", "DocumentMaker", "fill", "required_fields", "spread"]

SPLITS = ("train", "validation")
DOCUMENT_COLUMNS = ("text", "language", "source", "document_id", "split")
"""Columns of a table of documents, all large strings; `text` is never null. Where records have `copies`, so do their
documents, unless these are made of several records."""

_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text",), ("id", "language", "source", "split", COPIES)),
    "bilingual": (("src_text", "tgt_text"), ("id", "src_lang", "tgt_lang", "source", "split")),
    "instruction": (("instruction", "response"), ("input", "id", "language", "source", "split", COPIES)),
    "code": (("text",), ("id", "language", "path", "source", "split", COPIES)),
}


def required_fields(kind: str) -> tuple[str, ...]:
    """Fields that a record of a component of this kind must have."""
    return _FIELDS[kind][0]


# Most pairs of one language pair that are held back until their documents are full.
_HELD_PAIRS = 8192
# Language pairs whose last documents are made together.
_KEYS_A_TABLE = 256
# What is held are slices of tables, which stay whole in memory. So much beyond what is held is borne.
_SLACK = 32 << 20


@dataclass
class DocumentMaker:
    """Makes documents from the records of one work unit, in order.

    Args:
        component: the component's settings.
        pack: the `pack` section.

    `removed` counts records that made no document, by reason.
    """

    component: PackComponent
    pack: Pack
    removed: dict[str, int] = field(default_factory=dict)
    records: int = 0
    _pairs: dict[tuple[str, str, str], _PairBuffer] = field(default_factory=dict)
    _sliced: int = 0  # bytes of the tables that the held pairs are slices of
    _copied: int = 0  # of them, bytes that nothing but held pairs took when they were copied last

    @property
    def fields(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Required and optional fields of a record of this kind."""
        return _FIELDS[self.component.kind]

    @property
    def batch_bytes(self) -> int:
        """Approximate bytes of text in a batch of records. Documents of pairs are made when a batch ends, so
        their order, and with it a bilingual component's content, depends on this number."""
        return 4 << 20 if self.component.kind == "bilingual" else BATCH_BYTES

    def add(self, batch: Batch) -> Iterator[pa.Table]:
        """Yields the documents that a batch of records completes."""
        self.records += len(batch.table)
        make = getattr(self, f"_{self.component.kind}")
        for table in make(batch):
            if len(table):
                yield table

    def finish(self) -> Iterator[pa.Table]:
        """Yields what is left after the unit's last record."""
        held = [key for key in sorted(self._pairs) if self._pairs[key].rows]
        for few in batched(held, _KEYS_A_TABLE):
            yield self._documents_of_pairs(few, last=True)

    def _text(self, batch: Batch) -> Iterator[pa.Table]:
        yield self._one_to_one(batch, batch.table["text"])

    def _code(self, batch: Batch) -> Iterator[pa.Table]:
        text, header = batch.table["text"], self.pack.code.header
        if header:
            language = self._languages(batch)
            if "{path" in header and "path" not in batch.table.column_names:
                raise UserError(
                    f"{batch.file().path}: data.pack.code.header uses {{path}}, but the records have "
                    "no field "
                    "'path'; add it to the corpus or take {path} out of the header"
                )
            path = batch.table["path"] if "path" in batch.table.column_names else language
            text = join(fill(header, {"path": path, "language": language}), text)
        yield self._one_to_one(batch, text)

    def _instruction(self, batch: Batch) -> Iterator[pa.Table]:
        settings, table = self.pack.instruction, batch.table
        fields = {
            "instruction": pc.fill_null(table["instruction"], ""),
            "response": pc.fill_null(table["response"], ""),
        }
        text = fill(settings.template, fields)
        if "input" in table.column_names:
            fields["input"] = pc.fill_null(table["input"], "")
            text = pc.if_else(
                pc.greater(pc.binary_length(fields["input"]), 0),
                fill(settings.template_with_input, fields),
                text,
            )
        # A record without an instruction or without a response teaches nothing.
        whole = pc.and_(pc.greater(pc.binary_length(fields["instruction"]), 0),
                        pc.greater(pc.binary_length(fields["response"]), 0))  # fmt: skip
        yield self._one_to_one(batch, pc.if_else(whole, text, ""))

    def _one_to_one(self, batch: Batch, text: pa.ChunkedArray) -> pa.Table:
        """One document per record; records without text are counted as `empty`."""
        table = pa.table(
            {
                "text": text,
                "language": self._languages(batch),
                "source": self._filled(batch, "source", lambda file: file.folder),
                "document_id": self._ids(batch),
                "split": self._splits(batch),
                **({COPIES: batch.table[COPIES]} if COPIES in batch.table.column_names else {}),
            }
        )
        empty = pc.fill_null(pc.equal(pc.binary_length(table["text"]), 0), True)
        if count := pc.sum(empty).as_py() or 0:
            self._remove("empty", count)
            table = table.filter(pc.invert(empty))
        return table

    def _bilingual(self, batch: Batch) -> Iterator[pa.Table]:
        table = batch.table
        if "src_lang" in table.column_names and "tgt_lang" in table.column_names:
            source, target = table["src_lang"], table["tgt_lang"]
            if source.null_count or target.null_count:
                row = pc.index(pc.or_(pc.is_null(source), pc.is_null(target)), True).as_py()
                raise UserError(
                    f"{batch.file(row).path}: record {batch.place(row)} names only one language of its pair"
                )
        else:
            source = batch.by_file(lambda file: self._pair(file)[0])
            target = batch.by_file(lambda file: self._pair(file)[1])
        rows = pa.table(
            {
                "src": table["src_text"],
                "tgt": table["tgt_text"],
                "source_lang": source,
                "target_lang": target,
                "source": self._filled(batch, "source", lambda file: file.folder),
                "id": self._ids(batch),
                "split": self._splits(batch),
            }
        )
        whole = pc.and_(pc.greater(pc.fill_null(pc.binary_length(rows["src"]), 0), 0),
                        pc.greater(pc.fill_null(pc.binary_length(rows["tgt"]), 0), 0))  # fmt: skip
        kept = rows.filter(whole)
        if len(kept) < len(rows):
            self._remove("empty", len(rows) - len(kept))
        full = []
        for key, group in _groups(kept):
            buffer = self._pairs.setdefault(key, _PairBuffer())
            buffer.tables.append(group)
            buffer.rows += len(group)
            if buffer.rows >= _HELD_PAIRS:
                full.append(key)
        if full:
            yield self._documents_of_pairs(full, last=False)
        self._sliced += kept.nbytes
        if self._sliced > self._copied * 5 // 4 + _SLACK:
            self._sliced = self._copied = self._copy_held()

    def _copy_held(self) -> int:
        """Copies the held pairs, which frees the tables that they are slices of; returns their bytes."""
        buffers = [buffer for buffer in self._pairs.values() if buffer.rows]
        if not buffers:
            return 0
        tables = [table for buffer in buffers for table in buffer.tables]
        # A single one would not be copied.
        rows = pa.concat_tables([*tables, tables[0].slice(0, 0)]).combine_chunks()
        start = 0
        for buffer in buffers:
            buffer.tables = [rows.slice(start, buffer.rows)]
            start += buffer.rows
        return int(rows.nbytes)

    def _documents_of_pairs(self, keys: Sequence[tuple[str, str, str]], *, last: bool) -> pa.Table:
        """Documents of the pairs held for language pairs and splits, in this order; pairs that fill no document are
        kept, unless `last`."""
        settings, buffers = self.pack.bilingual, [self._pairs[key] for key in keys]
        rows = pa.concat_tables([table for buffer in buffers for table in buffer.tables]).combine_chunks()
        codes = codes_of(rows, ("src", "tgt")).indices.to_numpy()
        of_key = np.repeat(np.arange(len(keys)), [buffer.rows for buffer in buffers])
        both = np.sort(of_key * len(codes) + codes)
        repeated = set((both[1:][both[1:] == both[:-1]] // len(codes)).tolist())
        orders, all_sizes, turned, start = [], [], [], 0
        for number, buffer in enumerate(buffers):
            own = codes[start : start + buffer.rows]
            if number in repeated:
                order, sizes, rest = spread(own, settings.pairs_per_document, last=last)
            else:
                order, sizes, rest = _in_order(len(own), settings.pairs_per_document, last=last)
            if len(rest) > _HELD_PAIRS // 2:
                # The same few pairs keep coming: waiting for fuller documents would hold back more and more.
                order, sizes, rest = spread(own, settings.pairs_per_document, last=True)
            buffer.tables, buffer.rows = [rows.take(start + rest)] if len(rest) else [], len(rest)
            turned.append((np.arange(len(sizes)) + buffer.documents) % 2 == 1)
            buffer.documents += len(sizes)
            orders.append(start + order)
            all_sizes.append(sizes)
            start += len(own)
        sizes = np.concatenate(all_sizes)
        taken = rows.take(np.concatenate(orders))
        of_key = np.repeat(np.arange(len(keys)), [int(part.sum()) for part in all_sizes])
        labels = [
            (source, target) if settings.language_labels == "code" else pair_labels(source, target)
            for source, target, _ in keys
        ]
        left, right = (_repeated([label[side] for label in labels], of_key) for side in (0, 1))
        forward = {"src_lang": left, "src": taken["src"], "tgt_lang": right, "tgt": taken["tgt"]}
        reverse = {"src_lang": right, "src": taken["tgt"], "tgt_lang": left, "tgt": taken["src"]}
        if settings.direction == "balanced":
            text = pc.if_else(
                pa.array(np.repeat(np.concatenate(turned), sizes)),
                fill(settings.template, reverse),
                fill(settings.template, forward),
            )
        else:
            text = fill(settings.template, forward if settings.direction == "forward" else reverse)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), as_array(text))
        first = pa.array(offsets[:-1])
        documents_of_key = np.repeat(np.arange(len(keys)), [len(part) for part in all_sizes])
        return pa.table(
            {
                "text": pc.binary_join(lists, pa.scalar("", pa.large_string())),
                "language": _repeated([f"{source}-{target}" for source, target, _ in keys], documents_of_key),
                "source": taken["source"].take(first),
                "document_id": taken["id"].take(first),
                "split": _repeated([split for _, _, split in keys], documents_of_key),
            }
        )

    def _pair(self, file: InputFile) -> tuple[str, str]:
        try:
            return split_pair(self.component.language or file.folder)
        except UserError as error:
            raise UserError(
                f"{file.path}: records have no src_lang and tgt_lang, and the folder is not a pair: {error}"
            ) from None

    def _languages(self, batch: Batch) -> pa.ChunkedArray:
        return self._filled(batch, "language", lambda file: self.component.language or file.folder)

    def _filled(self, batch: Batch, name: str, default: Callable[[InputFile], str]) -> pa.ChunkedArray:
        if name not in batch.table.column_names:
            return batch.by_file(default)
        column = batch.table[name]
        return pc.coalesce(column, batch.by_file(default)) if column.null_count else column

    def _ids(self, batch: Batch) -> pa.ChunkedArray:
        column = batch.table["id"] if "id" in batch.table.column_names else None
        if column is not None and not column.null_count:
            return column
        places = pa.array([batch.place(row) for row in range(len(batch.table))], pa.large_string())
        return pa.chunked_array([places]) if column is None else pc.coalesce(column, places)

    def _splits(self, batch: Batch) -> pa.ChunkedArray:
        splits = self._filled(batch, "split", lambda file: file.split)
        for value in pc.unique(splits).to_pylist():
            if value not in SPLITS:
                row = pc.index(splits, pa.scalar(value, pa.large_string())).as_py()
                raise UserError(
                    f"{batch.file(row).path}: record {batch.place(row)} has the split {value!r}; expected "
                    f"{' or '.join(SPLITS)}"
                )
        return splits

    def _remove(self, reason: str, count: int) -> None:
        self.removed[reason] = self.removed.get(reason, 0) + count


@dataclass
class _PairBuffer:
    """Pairs of one language pair and split whose document is not full yet."""

    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    documents: int = 0


def fill(template: str, fields: Mapping[str, pa.ChunkedArray | str]) -> pa.ChunkedArray:
    """Fills a template element by element: each placeholder is a column or a constant."""
    parts: list[pa.ChunkedArray | str] = []
    for literal, name, _, _ in Formatter().parse(template):
        if literal:
            parts.append(literal)
        if name is not None:
            parts.append(fields[name])
    return join(*parts)


def spread(codes: np.ndarray, size: int, *, last: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups elements into documents of `size` such that no document holds a code twice.

    Args:
        codes: integer code of each element; equal elements have equal codes.
        size: elements per document.
        last: also make documents that are not full.

    Returns:
        Order of the elements that are placed (int64), sizes of the documents (int64), elements left over
        (int64). Without repetitions this is the given order.
    """
    count = len(codes)
    whole = count // size * size
    windows = np.sort(codes[:whole].reshape(-1, size), axis=1)
    tail = np.sort(codes[whole:])
    repeated = bool((windows[:, 1:] == windows[:, :-1]).any()) or bool((tail[1:] == tail[:-1]).any())
    if not repeated:
        return _in_order(count, size, last=last)
    closed: list[list[int]] = []
    opened: list[tuple[set[int], list[int]]] = []
    for element, code in enumerate(codes.tolist()):
        place = next((i for i, (held, _) in enumerate(opened) if code not in held), len(opened))
        if place == len(opened):
            opened.append((set(), []))
        held, document = opened[place]
        held.add(code)
        document.append(element)
        if len(document) == size:
            closed.append(document)
            del opened[place]
    left = [document for _, document in opened]
    if last:
        closed, left = closed + left, []
    order = np.array([element for document in closed for element in document], np.int64)
    rest = np.array(sorted(element for document in left for element in document), np.int64)
    return order, np.array([len(document) for document in closed], np.int64), rest


def _in_order(count: int, size: int, *, last: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `spread`, without repetitions."""
    whole = count // size * size
    sizes = np.full(whole // size, size, np.int64)
    if last and count > whole:
        return np.arange(count), np.append(sizes, count - whole), np.arange(0)
    return np.arange(whole), sizes, np.arange(whole, count)


def _groups(table: pa.Table) -> Iterator[tuple[tuple[str, str, str], pa.Table]]:
    """Parts of a table of pairs with the same languages and split, in order of first appearance."""
    if not len(table):
        return
    codes, keys = encode_keys(table, ("source_lang", "target_lang", "split"))
    codes = codes.to_numpy(zero_copy_only=False)
    if (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        table = table.take(order)
    start = 0
    for (source, target, split), rows in zip(keys, np.bincount(codes).tolist(), strict=True):
        yield (source, target, split), table.slice(start, rows)
        start += rows


def _repeated(values: Sequence[str], codes: np.ndarray) -> pa.ChunkedArray:
    """The column of the values that the codes number."""
    return pa.chunked_array([pa.array(values, pa.large_string()).take(pa.array(codes))])
