"""The token store on disk: names, formats, and what a finished component says about itself.

`store/<component>/` holds `shard-NNNNN.bin` (token ids of consecutive documents), `documents-NNNNN.parquet`
(one row per document, in the order of the shard), `sources.parquet` (counts of every language and split) and
`manifest.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME, Manifest

__all__ = [
    "COUNTED_SCHEMA",
    "DOCUMENT_SCHEMA",
    "FORMAT",
    "SOURCE_SCHEMA",
    "Component",
    "Shard",
    "bin_name",
    "documents_name",
    "open_component",
    "open_store",
    "token_dtype",
]

FORMAT = 1
"""Version of the store's layout."""

DOCUMENT_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("language", pa.string()),
        ("component", pa.string()),
        ("source", pa.string()),
        ("document_id", pa.string()),
        ("offset", pa.int64()),
        ("tokens", pa.int32()),
        ("bytes", pa.int64()),
        ("split", pa.string()),
    ]
)
"""Columns of `documents-NNNNN.parquet`. `row` counts from 0 in every shard, `offset` is in bytes of the
shard, `tokens` includes begin and end of text, `bytes` is the text's size in UTF-8."""

COUNTED_SCHEMA = DOCUMENT_SCHEMA.append(pa.field("copies", pa.int64()))
"""Columns of a shard whose documents come from tables with the column `copies`: of how many documents of the raw text each
is what deduplication left, itself included; null where the table says none."""

SOURCE_SCHEMA = pa.schema(
    [
        ("language", pa.string()),
        ("split", pa.string()),
        ("documents", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
"""Columns of `sources.parquet`."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Smallest type for a vocabulary that Megatron supports: uint16 below 65,500 ids, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def bin_name(number: int) -> str:
    """File name of a shard's tokens."""
    return f"shard-{number:05d}.bin"


def documents_name(number: int) -> str:
    """File name of a shard's documents."""
    return f"documents-{number:05d}.parquet"


@dataclass(frozen=True)
class Shard:
    """One shard of a finished component.

    `bytes` is the size of its `.bin`, `rows` its number of documents.
    """

    folder: Path
    number: int
    bytes: int
    rows: int

    @property
    def bin_path(self) -> Path:
        return self.folder / bin_name(self.number)

    @property
    def documents_path(self) -> Path:
        return self.folder / documents_name(self.number)

    def documents(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields columns of the shard's documents, in order.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            file = pq.ParquetFile(self.documents_path)
            yield from file.iter_batches(1 << 20, columns=list(columns), use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{self.documents_path}: cannot be read ({error}); pack this component again"
            ) from None


@dataclass(frozen=True)
class Component:
    """A finished component of a store, as its manifest describes it."""

    name: str
    folder: Path
    manifest: Manifest

    @property
    def settings(self) -> dict[str, Any]:
        """What the bytes depend on: tokenizer, document boundaries, templates, limits."""
        return dict(self.manifest.extra["settings"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a token id."""
        return np.dtype(self.manifest.extra["dtype"])

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self.settings["vocab_size"])

    @property
    def begin_of_text_id(self) -> int | None:
        """Begin of text: the token that opens every document, if any."""
        return self.settings["begin_id"]

    @property
    def end_of_text_id(self) -> int:
        """End of text: the token that closes every document."""
        return int(self.settings["end_id"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of all shards and document tables; it identifies the content."""
        return str(self.manifest.extra["fingerprint"])

    @cached_property
    def shards(self) -> list[Shard]:
        """Shards in order."""
        return [
            Shard(self.folder, number, shard["bytes"], shard["rows"])
            for number, shard in enumerate(self.manifest.extra["shards"])
        ]

    @cached_property
    def sources(self) -> pa.Table:
        """`sources.parquet`."""
        path = self.folder / "sources.parquet"
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}); pack this component again") from None
        if table.schema != SOURCE_SCHEMA:
            raise UserError(f"{path}: has other columns than this version writes; pack this component again")
        return table


def open_component(folder: Path) -> Component:
    """Opens a finished component.

    Raises:
        UserError: it is missing or unfinished, or another version wrote it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such component of the token store; run `emma pack run` first")
    manifest = Manifest.read(folder)
    if manifest.stage != "pack" or manifest.extra.get("format") != FORMAT:
        raise UserError(
            f"{folder / MANIFEST_NAME}: not part of a token store of format {FORMAT}; pack this component again"
        )
    return Component(folder.name, folder, manifest)


def open_store(folder: Path, names: Sequence[str]) -> list[Component]:
    """Opens components of a store; checks that they share tokenizer and document boundaries, and that their
    shards have the recorded sizes.

    Raises:
        UserError: a component is missing, a shard was truncated, or two components differ in tokenizer, vocabulary
            or document boundaries.
    """
    components = [open_component(folder / name) for name in names]
    for shard in (shard for component in components for shard in component.shards):
        size = shard.bin_path.stat().st_size if shard.bin_path.is_file() else 0
        if size != shard.bytes:
            raise UserError(
                f"{shard.bin_path}: {size} bytes, but {shard.bytes} were written; put the file back, or pack "
                "this component again"
            )
    first = components[0]
    for other in components[1:]:
        for key in ("tokenizer_sha256", "vocab_size", "begin_id", "end_id"):
            if first.settings[key] != other.settings[key]:
                raise UserError(
                    f"{other.folder}: {key} is {other.settings[key]}, but {first.settings[key]} in "
                    f"{first.folder}; a mix needs components that were packed with the same tokenizer. Pack "
                    "one of them again"
                )
    return components
