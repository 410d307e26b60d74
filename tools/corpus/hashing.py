"""First phase of deduplication: hashes of a chunk's documents, in files that each group maps into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.base.files import atomic_write
from emma.recipes.schema.corpus import Corpus, NearDuplicates
from emma.tools.corpus.filter import batches
from emma.tools.corpus.keys import pair_keys, text_keys
from emma.tools.corpus.layout import Part, part_path, read_row_groups, text_columns
from emma.tools.corpus.minhash import bands, shingles_of
from emma.tools.languages.scripts import script_of

__all__ = ["MIN_PARAGRAPH", "ChunkHashes", "Slice", "hash_parts", "paragraphs", "searched_kind"]

MIN_PARAGRAPH = 40
"""Paragraphs with fewer characters are never duplicates: headings and greetings belong to their document."""


@dataclass(frozen=True)
class Slice:
    """Rows of one part in the hashes of its chunk."""

    part: Part
    chunk: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows in the part."""
        return self.stop - self.start


def searched_kind(corpus: Corpus, kind: str) -> NearDuplicates | None:
    """Settings of the near-duplicate search for a kind; None if the kind is not searched."""
    near = corpus.deduplication.near
    return near if near is not None and kind in near.kinds and kind != "parallel" else None


def paragraphs(text: str) -> list[str]:
    """Lines of a text; joining them with line feeds gives the text back."""
    return text.split("\n")


class ChunkHashes:
    """Hash arrays of a chunk, mapped into memory.

    Attributes:
        keys: keys of documents or pairs (rows × 2).
        sides: first column of the keys of both sides of pairs (rows × 2); zeros for other kinds.
        orders: position of each document's source in the recipe (uint16).
        bands: band hashes (bands × rows), if near duplicates are searched.
        long: whether a document is long enough for that search.
        paragraph_keys: keys of paragraphs (paragraphs × 2).
        paragraph_rows: the row of each paragraph.
    """

    NAMES = ("keys", "sides", "orders", "bands", "long", "paragraph_keys", "paragraph_rows")

    def __init__(self, folder: Path, chunk: int) -> None:
        self.folder, self.chunk = folder, chunk

    def path(self, name: str) -> Path:
        """File of an array."""
        return self.folder / f"{self.chunk:06d}-{name}.npy"

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name not in self.NAMES:
            raise AttributeError(name)
        array: NDArray[Any] = np.load(self.path(name), mmap_mode="r")
        # Empty arrays cannot be mapped, so numpy loads them.
        setattr(self, name, array)
        return array

    def save(self, name: str, arrays: Sequence[NDArray[Any]], axis: int = 0) -> None:
        """Writes an array from its pieces."""
        with atomic_write(self.path(name)) as handle:
            np.save(handle, np.concatenate(arrays, axis=axis))


def hash_parts(corpus: Corpus, root: str, folder: str, chunk: int, parts: Sequence[Part]) -> dict[str, Any]:
    """Hashes the documents of a chunk's parts into `folder`; returns `slices`, each part's range of rows."""
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in ChunkHashes.NAMES}
    near = corpus.deduplication.near
    number_of_bands = near.bands if near else 0
    orders = {name: index for index, name in enumerate(corpus.sources)}
    slices, rows = [], 0
    for part in parts:
        start = rows
        names = text_columns(part.kind)
        for table in read_row_groups(part_path(Path(root), "filtered", part), [*names, "source"]):
            for batch in batches(table, names):
                texts = [batch.column(name).to_pylist() for name in names]
                _hash_batch(corpus, part, texts, found, rows)
                sources = batch.column("source").to_pylist()
                found["orders"].append(np.array([orders[source] for source in sources], np.uint16))
                rows += batch.num_rows
        slices.append([start, rows])
    hashes = ChunkHashes(Path(folder), chunk)
    empty: dict[str, NDArray[Any]] = {
        "keys": np.zeros((0, 2), np.uint64),
        "sides": np.zeros((0, 2), np.uint64),
        "orders": np.zeros(0, np.uint16),
        "bands": np.zeros((number_of_bands, 0), np.uint64),
        "long": np.zeros(0, np.bool_),
        "paragraph_keys": np.zeros((0, 2), np.uint64),
        "paragraph_rows": np.zeros(0, np.int64),
    }
    for name, pieces in found.items():
        hashes.save(name, [empty[name], *pieces], axis=1 if name == "bands" else 0)
    return {"slices": slices}


def _hash_batch(
    corpus: Corpus,
    part: Part,
    texts: Sequence[list[str]],
    found: dict[str, list[NDArray[Any]]],
    first: int,
) -> None:
    rows = len(texts[0])
    keys = [text_keys(values, part.kind) for values in texts]
    if part.kind == "parallel":
        source, target = part.language.split("-")
        swapped = source > target
        found["keys"].append(pair_keys(keys[0], keys[1], swapped))
        sides = np.stack([keys[0][:, 0], keys[1][:, 0]], axis=1)
        found["sides"].append(sides[:, ::-1] if swapped else sides)
    else:
        found["keys"].append(keys[0])
        found["sides"].append(np.zeros((rows, 2), np.uint64))
    near = searched_kind(corpus, part.kind)
    if near is not None:
        shingles = shingles_of(texts[0], near, "" if part.kind == "code" else script_of(part.language))
        found["bands"].append(np.ascontiguousarray(bands(shingles, near).T))
        found["long"].append(np.array([len(text) >= near.min_characters for text in texts[0]], np.bool_))
    elif corpus.deduplication.near is not None:
        found["bands"].append(np.zeros((corpus.deduplication.near.bands, rows), np.uint64))
        found["long"].append(np.zeros(rows, np.bool_))
    if corpus.deduplication.paragraphs and part.kind != "parallel":
        lines, owners = [], []
        for row, text in enumerate(texts[0]):
            for line in paragraphs(text):
                lines.append(line)
                owners.append(first + row)
        paragraph_keys = text_keys(lines, part.kind).copy()
        # Short paragraphs keep their places, so that positions hold, but get the key 0: never compared.
        short = np.array([len(line) < MIN_PARAGRAPH for line in lines], np.bool_)
        paragraph_keys[short] = 0
        found["paragraph_keys"].append(paragraph_keys)
        found["paragraph_rows"].append(np.array(owners, np.int64))
