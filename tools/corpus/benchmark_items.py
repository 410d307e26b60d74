"""Which benchmark items, in which language, occur in a corpus."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emma.recipes.schema.corpus import Decontamination
from emma.tools.corpus.contamination import (
    BenchmarkIndex,
    benchmark_files,
    benchmark_records,
    index_hashes,
    record_texts,
)

__all__ = ["Found", "ItemIndex", "Place", "place_of"]

_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "devtest": "devtest",
    "test": "test",
    "eval": "eval",
}
_NO_NAMES = {"data", "main", "dataset"}
_LANGUAGE_FIELDS = ("language", "lang", "language_code", "lang_code")


@dataclass(frozen=True, order=True)
class Place:
    """Where an item belongs; `language` and `split` are empty if neither path nor record names them."""

    benchmark: str
    language: str
    split: str


@dataclass(frozen=True)
class Found:
    """Items of one benchmark, language and split: all, those long enough to search for, and those found."""

    benchmark: str
    language: str
    split: str
    items: int
    searched: int
    found: int


def place_of(path: Path) -> Place:
    """Benchmark, language and split, read from a file's path below the benchmarks' folder.

    The benchmark is whatever precedes language, split and file name:
    `facebook/belebele/data/deu_Latn/test.jsonl` belongs to `facebook/belebele`,
    `flores200_dataset/devtest/deu_Latn.devtest` to `flores200_dataset`.
    """
    benchmark: list[str] = []
    language = split = ""
    name = re.sub(r"(\.(jsonl?|csv|tsv|txt|parquet|dev|devtest|gz|zst|bz2))+$", "", path.name)
    for piece in [*path.parts[:-1], name]:
        code, rest = _language_in(piece)
        words = [word for word in re.split(r"[-_.]", rest) if word and not word.isdigit()]
        splits = [_SPLITS[word.lower()] for word in words if word.lower() in _SPLITS]
        known = bool(language or split)
        language, split = code or language, splits[-1] if splits else split
        if code or splits:
            rest = "_".join(word for word in words if word.lower() not in _SPLITS)
        if rest and rest.lower() not in _NO_NAMES and not known and (piece != name or not benchmark):
            benchmark.append(rest)
    if path.suffix in (".dev", ".devtest"):
        split = path.suffix[1:]
    return Place("/".join(benchmark) or path.name, language, split)


def _language_in(piece: str) -> tuple[str, str]:
    """Language code in one piece of a path, and the piece without it."""
    from emma.tools.languages.codes import language_table

    if match := _CODE.search(piece):
        return match[0], piece.replace(match[0], "")
    known = language_table()
    if piece in known:
        return piece, ""
    words = re.split(r"[-_.]", piece)
    for word in words:
        if word in known and len(word) == 2 and len(words) > 1:
            return word, piece.replace(word, "", 1)
    for name in sorted((n for n in known if n.islower() and len(n) > 3 and "_" not in n[:4]), key=len)[::-1]:
        if piece.startswith(f"{name}_") or piece.endswith(f"_{name}"):
            return name, piece.replace(name, "", 1)
    return "", piece


class ItemIndex(BenchmarkIndex):
    """A `BenchmarkIndex` that knows which item each n-gram comes from and remembers which ones it met."""

    def __init__(
        self,
        settings: Decontamination,
        hashes: NDArray[np.uint64],
        owners: NDArray[np.int64],
        places: list[Place],
        place_of_item: NDArray[np.int64],
    ) -> None:
        """Args:
        settings: n-gram lengths.
        hashes: hashes of all n-grams of all items.
        owners: the item that each hash comes from.
        places: benchmarks, languages and splits.
        place_of_item: each item's index into `places`.
        """
        unique, inverse = np.unique(hashes, return_inverse=True)
        super().__init__(settings, unique)
        self._hash_of, self._owners = inverse, owners
        self._places, self._place_of_item = places, place_of_item
        self._seen = np.zeros(len(unique), np.bool_)

    @classmethod
    def of_folder(cls, settings: Decontamination) -> ItemIndex:
        """Indexes the benchmarks' folder, item by item.

        Raises:
            UserError: the folder holds no evaluation texts, or a file cannot be read.
        """
        root = Path(settings.benchmarks)
        places: dict[Place, int] = {}
        of_item: list[int] = []
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for file, _ in benchmark_files(settings):
            path = Path(file)
            texts: list[str] = []
            items: list[int] = []
            for place, strings in _items(path, place_of(path.relative_to(root))):
                items += [len(of_item)] * len(strings)
                texts += strings
                of_item.append(places.setdefault(place, len(places)))
            found, rows = index_hashes(settings, texts)
            hashes.append(found)
            owners.append(np.asarray(items, np.int64)[rows])
        return cls(
            settings,
            np.concatenate(hashes),
            np.concatenate(owners),
            list(places),
            np.asarray(of_item, np.int64),
        )

    def _met(self, places: NDArray[np.int64]) -> None:
        self._seen[places] = True

    def found(self) -> list[Found]:
        """Items met so far, by benchmark, language and split."""
        count = len(self._place_of_item)
        searched = np.zeros(count, np.bool_)
        searched[self._owners] = True
        met = np.zeros(count, np.bool_)
        met[self._owners[self._seen[self._hash_of]]] = True
        size = len(self._places)

        def totals(chosen: NDArray[np.bool_]) -> list[int]:
            return np.bincount(self._place_of_item[chosen], minlength=size).tolist()

        rows = zip(self._places, totals(np.ones(count, np.bool_)), totals(searched), totals(met), strict=True)
        return [
            Found(place.benchmark, place.language, place.split, items, looked, hits)
            for place, items, looked, hits in sorted(rows)
        ]


def _items(path: Path, place: Place) -> Iterator[tuple[Place, list[str]]]:
    """Items of a file and where they belong; if the path names no language, a field of the record may."""
    for record in benchmark_records(path):
        strings = record_texts(record)
        if strings:
            yield (_of_record(record, place), strings)


def _of_record(record: Any, place: Place) -> Place:
    if isinstance(record, dict) and not place.language:
        for name in _LANGUAGE_FIELDS:
            if isinstance(record.get(name), str) and len(record[name]) < 40:
                return Place(place.benchmark, record[name], place.split)
    return place
