"""Overlap of documents with evaluation texts, found with an n-gram index of a folder of benchmarks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.base.errors import UserError
from emma.base.files import atomic_write, sha256_file
from emma.recipes.schema.corpus import Decontamination
from emma.tools.corpus.shingles import Shingles, character_shingles, mix, word_shingles
from emma.tools.corpus.streams import open_bytes
from emma.tools.languages.scripts import SPACELESS, measure

__all__ = [
    "BenchmarkIndex",
    "benchmark_files",
    "benchmark_records",
    "benchmark_texts",
    "build_index",
    "index_hashes",
    "record_texts",
]

_SALT_WORDS, _SALT_CHARACTERS = np.uint64(0x5851F42D4C957F2D), np.uint64(0x14057B7EF767814F)
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".dev", ".devtest")
"""`.dev` and `.devtest` are the plain-text files of the FLORES-200 release."""


def benchmark_files(settings: Decontamination) -> list[tuple[str, str]]:
    """Path and SHA-256 of each evaluation file in the benchmarks' folder.

    Raises:
        UserError: the folder holds none.
    """
    folder = Path(settings.benchmarks)
    paths = [
        p for p in sorted(folder.rglob("*")) if p.is_file() and any(e in p.name.lower() for e in _ENDINGS)
    ]
    if not paths:
        raise UserError(
            f"data.corpus.decontamination.benchmarks: {folder} holds no file of evaluation texts "
            f"({', '.join(_ENDINGS)}); fetch them (emma evaluate fetch) or fix the path"
        )
    return [(str(path), sha256_file(path)) for path in paths]


def benchmark_texts(path: Path) -> Iterator[str]:
    """All texts in a benchmark's file: each string of each record, and each record's strings joined.

    The joined text catches a passage copied together with its question or choices: n-grams span the seams.

    Raises:
        UserError: the file is not in the format that its extension names.
    """
    for record in benchmark_records(path):
        yield from record_texts(record)


def record_texts(record: Any) -> list[str]:
    """Strings of a record and, if there are several, all of them joined."""
    found = list(_strings(record))
    return [*found, "\n".join(found)] if len(found) > 1 else found


def benchmark_records(path: Path) -> Iterator[Any]:
    """Records of a benchmark's file: its lines, rows, or elements of a JSON list.

    Raises:
        UserError: the file is not in the format that its extension names.
    """
    name = path.name.lower()
    for ending in (".gz", ".zst", ".bz2"):
        name = name.removesuffix(ending)
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        except OSError as error:
            raise UserError(f"{path}: not a readable parquet file ({error})") from None
        return
    with open_bytes(str(path)) as stream:
        try:
            content = stream.read().decode("utf-8-sig")
            if name.endswith(".jsonl"):
                yield from (json.loads(line) for line in content.splitlines() if line.strip())
            elif name.endswith(".json"):
                yield from _elements(json.loads(content))
            elif name.endswith((".csv", ".tsv")):
                delimiter = "\t" if name.endswith(".tsv") else ","
                yield from csv.reader(content.splitlines(), delimiter=delimiter)
            else:
                yield from content.splitlines()
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise UserError(
                f"{path}: cannot be read as {Path(name).suffix} ({error}); fix or remove it"
            ) from None


def _elements(value: Any) -> Iterator[Any]:
    """Records of a JSON file: the elements of its list, or of the only list in its top-level object."""
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]
    yield from value if isinstance(value, list) else [value]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


class BenchmarkIndex:
    """n-grams of evaluation texts: sorted hashes; those of words and of characters have different salts."""

    def __init__(self, settings: Decontamination, hashes: NDArray[np.uint64]) -> None:
        self.settings, self.hashes = settings, hashes

    @classmethod
    def build(cls, settings: Decontamination, path: Path) -> BenchmarkIndex:
        """Indexes the benchmarks' folder and writes the hashes to `path`."""
        found = [
            cls.of(settings, list(benchmark_texts(Path(file)))).hashes
            for file, _ in benchmark_files(settings)
        ]
        index = cls(settings, np.unique(np.concatenate(found)))
        with atomic_write(path) as handle:
            np.save(handle, index.hashes)
        return index

    @classmethod
    def load(cls, settings: Decontamination, path: Path) -> BenchmarkIndex:
        """Maps what `build` wrote into memory that processes share."""
        return cls(settings, np.load(path, mmap_mode="r"))

    @classmethod
    def of(cls, settings: Decontamination, texts: Sequence[str]) -> BenchmarkIndex:
        """Index of texts.

        A text shorter than an n-gram matches only a whole document; one shorter than half an n-gram is left
        out, since it would match by chance.
        """
        return cls(settings, np.unique(index_hashes(settings, texts)[0]))

    def overlaps(self, texts: Sequence[str], script: str) -> NDArray[np.int64]:
        """Counts each text's n-grams that are in the index; `script` is the language's ("": unknown)."""
        counts = np.zeros(len(texts), np.int64)
        if not len(self.hashes):
            return counts
        for rows, shingles, _ in _grams(self.settings, texts, script or None):
            at = np.minimum(np.searchsorted(self.hashes, shingles.hashes), len(self.hashes) - 1)
            hits = self.hashes[at] == shingles.hashes
            self._met(at[hits])
            total = np.zeros(len(hits) + 1, np.int64)
            np.cumsum(hits, out=total[1:])
            counts[rows] = total[shingles.offsets[1:]] - total[shingles.offsets[:-1]]
        return counts

    def _met(self, places: NDArray[np.int64]) -> None:
        """Called with the positions of the hashes that matched; subclasses may record them."""


def index_hashes(
    settings: Decontamination, texts: Sequence[str]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the n-grams of evaluation texts to search for, and the position of each one's text."""
    hashes, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for rows, shingles, n in _grams(settings, texts):
        counts = np.diff(shingles.offsets)
        long = np.repeat(2 * shingles.units >= n, counts)
        hashes.append(shingles.hashes[long])
        places.append(np.repeat(rows, counts)[long])
    return np.concatenate(hashes), np.concatenate(places)


def build_index(settings: Decontamination, path: str) -> int:
    """Writes the index to `path` and returns its number of n-grams."""
    return len(BenchmarkIndex.build(settings, Path(path)).hashes)


def _grams(
    settings: Decontamination, texts: Sequence[str], script: str | None = None
) -> Iterator[tuple[NDArray[np.int64], Shingles, int]]:
    """n-grams of words or, in spaceless scripts, of characters: rows of the texts, shingles, and n."""
    spaceless = (
        np.full(len(texts), script in SPACELESS)
        if script is not None
        else np.array([found in SPACELESS for found, _ in measure(texts)], np.bool_)
    )
    for is_spaceless, n, salt in (
        (False, settings.ngram, _SALT_WORDS),
        (True, settings.character_ngram, _SALT_CHARACTERS),
    ):
        rows = np.flatnonzero(spaceless == is_spaceless)
        if not len(rows):
            continue
        chosen = [texts[row] for row in rows]
        shingles = character_shingles(chosen, n) if is_spaceless else word_shingles(chosen, n)
        yield rows, Shingles(mix(shingles.hashes ^ salt), shingles.offsets, shingles.units), n
