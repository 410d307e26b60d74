"""First phase of deduplication: hashes of a chunk's documents, in files sorted by hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from emma.base.files import atomic_write
from emma.recipes.schema.corpus import Corpus, NearDuplicates
from emma.tools.corpus.duplicates.entries import bucket_counts, plan_ranges, write_entries
from emma.tools.corpus.duplicates.numbering import RUN, number_runs
from emma.tools.corpus.filter import batches
from emma.tools.corpus.keys import pair_keys, text_keys
from emma.tools.corpus.layout import Part, part_path, read_row_groups, text_columns
from emma.tools.corpus.minhash import bands, shingles_of
from emma.tools.corpus.shingles import mix
from emma.tools.corpus.thresholds import thresholds_for
from emma.tools.languages.scripts import script_of

__all__ = [
    "ALIVE",
    "MIN_PARAGRAPH",
    "NUMBERING",
    "group_of",
    "hash_parts",
    "hashed_kinds",
    "number_documents",
    "paragraphs",
    "read_bits",
    "searched_kind",
    "write_bits",
]

MIN_PARAGRAPH = 40
"""Paragraphs with fewer characters are never duplicates: headings and greetings belong to their document."""

NUMBERING = "numbering.npz"
ALIVE = "alive"
"""Names of the file of the numbering, and of those that say which rows of a block are no copies."""

_BLOCK_ENTRIES = 1 << 21
"""Entries of one kind in a block; those of a million short documents would not fit into memory together."""


def searched_kind(corpus: Corpus, kind: str) -> NearDuplicates | None:
    """Settings of the near-duplicate search for a kind; None if the kind is not searched."""
    near = corpus.deduplication.near
    return near if near is not None and kind in near.kinds and kind != "parallel" else None


def paragraphs(text: str) -> list[str]:
    """Lines of a text; joining them with line feeds gives the text back."""
    return text.split("\n")


def group_of(part: Part) -> tuple[str, str]:
    """Documents of a group are compared with each other: those of a kind and language, or pair in both directions."""
    language = "-".join(sorted(part.language.split("-"))) if part.kind == "parallel" else part.language
    return part.kind, language


def hashed_kinds(corpus: Corpus) -> list[str]:
    """Kinds of hashes that the recipe needs."""
    settings = corpus.deduplication
    kinds = [
        "sides",
        *(["keys"] if settings.exact else []),
        *(["bands"] if settings.near is not None else []),
    ]
    return [*kinds, *(["paragraphs"] if settings.paragraphs else [])]


def write_bits(folder: Path, name: str, chunk: int, block: int, bits: NDArray[np.bool_]) -> None:
    """Writes one bit for each row of a block."""
    with atomic_write(folder / f"{chunk:06d}-{block:03d}-{name}") as handle:
        handle.write(np.packbits(bits).tobytes())


def read_bits(folder: Path, name: str, chunk: int, block: int) -> NDArray[np.bool_]:
    """Reads one bit for each row of a block (and up to seven more)."""
    packed = (folder / f"{chunk:06d}-{block:03d}-{name}").read_bytes()
    return np.unpackbits(np.frombuffer(packed, np.uint8)).view(np.bool_)


def _salt(*names: str) -> np.uint64:
    """Keeps groups apart in one space of hashes: XOR with it is a bijection, so nothing within a group changes."""
    return np.uint64(xxhash.xxh3_64_intdigest("\0".join(names).encode()))


class _Block:
    """Collects the entries of consecutive rows of a chunk and writes them."""

    def __init__(self, corpus: Corpus, folder: Path, chunk: int) -> None:
        self.corpus, self.folder, self.chunk, self.number = corpus, folder, chunk, 0
        self.runs: list[tuple[int, int, int, int, int]] = []
        self.rows = 0
        self._clear()

    def _clear(self) -> None:
        self._columns: dict[str, list[dict[str, NDArray[Any]]]] = {
            kind: [] for kind in hashed_kinds(self.corpus)
        }
        self._held = dict.fromkeys(self._columns, 0)

    def add(self, kind: str, **columns: NDArray[Any]) -> None:
        """Adds entries, if hashes of the kind are needed."""
        self._columns[kind].append(columns)
        self._held[kind] += len(columns["row"])

    def end_batch(self, orders: NDArray[np.uint16], group: int) -> None:
        """Counts a batch's rows."""
        edges = np.flatnonzero(np.diff(orders.astype(np.int64), prepend=-1))
        for start, stop in zip(edges.tolist(), [*edges[1:].tolist(), len(orders)], strict=True):
            order, row = int(orders[start]), self.rows + start
            if self.runs and self.runs[-1][2:] == (order, group, self.number):
                first, rows, *rest = self.runs[-1]
                self.runs[-1] = (first, rows + stop - start, *rest)
            else:
                self.runs.append((row, stop - start, order, group, self.number))
        self.rows += len(orders)
        if max(self._held.values()) >= _BLOCK_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Writes the entries of all kinds; the next rows begin another block."""
        if not self.runs or self.runs[-1][4] != self.number:
            return
        for kind, pieces in self._columns.items():
            names = pieces[0] if pieces else {"hash": 0, "row": 0}
            columns = {
                name: np.concatenate([piece[name] for piece in pieces] or [np.zeros(0)]) for name in names
            }
            write_entries(self.folder, self.chunk, self.number, kind, **columns)
        self.number += 1
        self._clear()


def hash_parts(corpus: Corpus, root: str, folder: str, chunk: int, parts: Sequence[Part]) -> dict[str, Any]:
    """Hashes the documents of a chunk's parts into `folder`; returns `slices`, each part's range of rows."""
    orders = {name: index for index, name in enumerate(corpus.sources)}
    block = _Block(corpus, Path(folder), chunk)
    slices = []
    for group, part in enumerate(parts):
        start = block.rows
        names = text_columns(part.kind)
        for table in read_row_groups(part_path(Path(root), "filtered", part), [*names, "source"]):
            for batch in batches(table, names):
                texts = [batch.column(name).to_pylist() for name in names]
                _hash_batch(corpus, part, texts, block)
                sources = batch.column("source").to_pylist()
                block.end_batch(np.array([orders[source] for source in sources], np.uint16), group)
        slices.append([start, block.rows])
    block.flush()
    with atomic_write(Path(folder) / f"{chunk:06d}-runs.npy") as handle:
        np.save(handle, np.array(block.runs, RUN))
    return {"slices": slices}


def _hash_batch(corpus: Corpus, part: Part, texts: Sequence[list[str]], block: _Block) -> None:
    group = group_of(part)
    rows = np.arange(block.rows, block.rows + len(texts[0]))
    keys = [text_keys(values, part.kind) for values in texts]
    if part.kind == "parallel":
        source, target = part.language.split("-")
        swapped = source > target
        document = pair_keys(keys[0], keys[1], swapped)
        for side, name in zip(keys[::-1] if swapped else keys, ("source", "target"), strict=True):
            block.add("sides", hash=side[:, 0] ^ _salt(*group, name), row=rows)
    else:
        document = keys[0]
    if corpus.deduplication.exact:
        block.add("keys", hash=document[:, 0] ^ _salt(*group), second=document[:, 1], row=rows)
    near = searched_kind(corpus, part.kind)
    if near is not None:
        long = np.flatnonzero([len(text) >= near.min_characters for text in texts[0]])
        chosen = [texts[0][row] for row in long.tolist()]
        script = "" if part.kind == "code" else script_of(part.language)
        found = (
            bands(shingles_of(chosen, near, script), near) if chosen else np.zeros((0, near.bands), np.uint64)
        )
        for band in range(near.bands):
            block.add("bands", hash=mix(found[:, band] ^ _salt(*group, str(band))), row=rows[long])
    if corpus.deduplication.paragraphs and part.kind != "parallel":
        lines, owners, places = [], [], []
        for row, text in enumerate(texts[0]):
            for place, line in enumerate(paragraphs(text)):
                if len(line) >= MIN_PARAGRAPH:
                    lines.append(line)
                    owners.append(row)
                    places.append(place)
        if lines:
            found = text_keys(lines, part.kind)
            block.add(
                "paragraphs",
                hash=found[:, 0] ^ _salt(*group),
                second=found[:, 1],
                row=rows[owners],
                line=np.array(places, np.uint32),
            )


def number_documents(
    corpus: Corpus, folder: str, chunks: Sequence[Sequence[Part]], memory: int
) -> dict[str, Any]:
    """Numbers the documents of all chunks, and divides the hashes into ranges that fit into `memory` bytes.

    Returns:
        `ranges` of buckets by kind of hashes; `entries` of each kind; `documents`.
    """
    runs = [np.load(Path(folder) / f"{chunk:06d}-runs.npy") for chunk in range(len(chunks))]
    # Both directions of a pair have the limit of the one that comes first.
    limits: dict[tuple[str, str], int] = {}
    for part in (part for chunk in chunks for part in chunk):
        if part.kind == "parallel" and group_of(part) not in limits:
            limits[group_of(part)] = thresholds_for(corpus, part.kind, part.language).max_target_repeats or 0
    of_chunks = [[limits.get(group_of(part), 0) for part in chunk] for chunk in chunks]
    numbering = number_runs(runs, of_chunks)
    numbering.write(Path(folder) / NUMBERING)
    blocks = [
        (chunk, block) for chunk, each in enumerate(runs) for block in np.unique(each["block"]).tolist()
    ]
    counts = {kind: bucket_counts(Path(folder), blocks, kind) for kind in hashed_kinds(corpus)}
    return {
        "ranges": {kind: plan_ranges(each, memory) for kind, each in counts.items()},
        "entries": {kind: int(each.sum()) for kind, each in counts.items()},
        "documents": numbering.documents,
    }
