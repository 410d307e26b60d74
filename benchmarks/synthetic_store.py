"""A token store of any size without its tokens: real document tables and manifests, and sparse `.bin` files of the
right size, whose tokens are all 0 and which take next to nothing on disk."""

from __future__ import annotations

import hashlib
import itertools
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emma.base.manifest import FileRecord, Manifest
from emma.tools.pack.store import DOCUMENT_SCHEMA, FORMAT, SOURCE_SCHEMA, bin_name, documents_name

__all__ = ["language_codes", "make_component", "make_holes", "pair_codes"]

VOCAB_SIZE = 128_256
_WIDTH = 4
_SHARD_BYTES = 8192 << 20
_BYTES_A_TOKEN = 4
_VALIDATION = 0.0005


def language_codes(count: int) -> list[str]:
    """`aaa_Latn`, `aab_Latn`, ..."""
    letters = itertools.product(string.ascii_lowercase, repeat=3)
    return [f"{''.join(code)}_Latn" for code in itertools.islice(letters, count)]


def pair_codes(count: int) -> list[str]:
    """`aaa_Latn-aab_Latn`, `aaa_Latn-aac_Latn`, ..."""
    return [f"{a}-{b}" for a, b in itertools.islice(itertools.combinations(language_codes(100), 2), count)]


def make_component(
    folder: Path, name: str, languages: Sequence[str], documents: int, tokens: int, seed: int
) -> None:
    """Writes a finished component.

    Args:
        folder: the store.
        name: the component.
        languages: its languages or pairs, whose sizes spread evenly over five orders of magnitude.
        documents: of all languages together, about.
        tokens: mean length of the documents.
        seed: of sizes and lengths.
    """
    target = folder / name
    target.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    weights = 10 ** np.linspace(0, 5, len(languages))
    counts = np.maximum(4, (weights / weights.sum() * documents).astype(np.int64))
    lengths = (rng.exponential(max(tokens - 16, 1), int(counts.sum())) + 16).astype(np.int32)
    validation = rng.random(len(lengths)) < _VALIDATION
    language = np.repeat(np.arange(len(languages)), counts)
    outputs, shards = [], []
    for number, part in enumerate(_shards(lengths)):
        table = _documents(name, languages, language[part], lengths[part], validation[part])
        path = target / documents_name(number)
        pq.write_table(table, path, compression="zstd", row_group_size=1 << 17,
                       use_dictionary=["language", "component", "source", "split"])  # fmt: skip
        size = int(lengths[part].sum(dtype=np.int64)) * _WIDTH
        make_holes(target / bin_name(number), size)
        outputs += [FileRecord(bin_name(number), size, "sha256:-"), FileRecord.of(path, target)]
        shards.append({"bytes": size, "rows": len(table)})
    pq.write_table(_sources(languages, language, lengths, validation), target / "sources.parquet")
    outputs.append(FileRecord.of(target / "sources.parquet", target))
    checksums = orjson.dumps([record.checksum for record in outputs])
    Manifest(
        "pack",
        "0" * 64,
        outputs=outputs,
        extra={
            "format": FORMAT,
            "fingerprint": hashlib.sha256(checksums).hexdigest(),
            "dtype": "int32",
            "settings": {
                "tokenizer_sha256": "0" * 64,
                "vocab_size": VOCAB_SIZE,
                "begin_id": 128_000,
                "end_id": 128_001,
            },
            "shards": shards,
        },
    ).write(target)


def make_holes(path: Path, size: int) -> None:
    """Makes a sparse file of `size` zero bytes, which takes no disk."""
    with path.open("wb") as handle:
        handle.truncate(size)


def _shards(lengths: np.ndarray) -> Iterator[slice]:
    """Documents of each shard."""
    ends = np.cumsum(lengths, dtype=np.int64) * _WIDTH
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + _SHARD_BYTES, side="right"))
        yield slice(start, stop)
        start = stop


def _documents(
    name: str, languages: Sequence[str], language: np.ndarray, lengths: np.ndarray, validation: np.ndarray
) -> pa.Table:
    count = len(lengths)
    numbers = pa.array(np.arange(count))
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * _WIDTH
    columns = [
        numbers,
        pa.DictionaryArray.from_arrays(language.astype(np.int32), list(languages)).dictionary_decode(),
        pa.repeat(name, count),
        pa.repeat("synthetic", count),
        pc.cast(numbers, pa.string()),
        pa.array(offsets),
        pa.array(lengths),
        pa.array(lengths.astype(np.int64) * _BYTES_A_TOKEN),
        pa.DictionaryArray.from_arrays(
            validation.astype(np.int32), ["train", "validation"]
        ).dictionary_decode(),
    ]
    return pa.table(columns, schema=DOCUMENT_SCHEMA)


def _sources(
    languages: Sequence[str], language: np.ndarray, lengths: np.ndarray, validation: np.ndarray
) -> pa.Table:
    rows = []
    for split, mask in (("train", ~validation), ("validation", validation)):
        documents = np.bincount(language[mask], minlength=len(languages))
        tokens = np.bincount(language[mask], lengths[mask], len(languages)).astype(np.int64)
        rows += [
            (code, split, int(count), int(total), int(total) * _BYTES_A_TOKEN)
            for code, count, total in zip(languages, documents, tokens, strict=True)
            if count
        ]
    columns = zip(*sorted(rows), strict=True)
    return pa.table([list(column) for column in columns], schema=SOURCE_SCHEMA)
