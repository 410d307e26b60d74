"""A look at packed documents: the decoded text of a few, drawn from a component."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emma.base.errors import UserError
from emma.tools.pack.store import Component

__all__ = ["Decoder", "PeekedDocument", "peek_documents"]


@dataclass(frozen=True)
class PeekedDocument:
    """A document with its place in the store and its text (control tokens spelled out)."""

    component: str
    language: str
    split: str
    document_id: str
    source: str
    shard: int
    row: int
    tokens: int
    text: str


class Decoder:
    """Decodes token ids with a `tokenizer.json`, control tokens included.

    Raises:
        UserError: the file is missing, or isn't the tokenizer that the store was packed with.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        from tokenizers import Tokenizer

        from emma.base.files import sha256_file

        if not path.is_file():
            raise UserError(f"{path}: no such tokenizer; give the one that the store was packed with")
        if sha256_file(path) != sha256:
            raise UserError(f"{path}: not the tokenizer that the store was packed with (SHA-256 {sha256})")
        self._tokenizer = Tokenizer.from_file(str(path))

    def __call__(self, ids: np.ndarray) -> str:
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def peek_documents(
    component: Component, decode: Decoder, *, language: str | None = None, count: int = 3, seed: int = 0
) -> Iterator[PeekedDocument]:
    """Yields documents drawn at random from a component, or from one language of it.

    Raises:
        UserError: the language is missing.
    """
    if language is not None and language not in component.sources["language"].to_pylist():
        known = sorted(set(component.sources["language"].to_pylist()))
        near = [name for name in known if name[:2] == language[:2]] or known
        raise UserError(
            f"{component.folder}: holds no {language!r}; it has "
            f"{', '.join(near[:8])}{' ...' if len(near) > 8 else ''}"
        )
    rng = np.random.default_rng(seed)
    for shard_number, row in _places(component, language, count, rng):
        shard = component.shards[shard_number]
        table = next(
            batch.slice(row - start, 1)
            for start, batch in _numbered(
                shard.documents(["language", "split", "document_id", "source", "offset", "tokens"])
            )
            if start <= row < start + len(batch)
        ).to_pylist()[0]
        tokens = np.memmap(shard.bin_path, component.dtype, "r", table["offset"], (table["tokens"],))
        yield PeekedDocument(
            component.name,
            table["language"],
            table["split"],
            table["document_id"],
            table["source"],
            shard_number,
            row,
            table["tokens"],
            decode(tokens),
        )


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches with the number of their first row."""
    start = 0
    for batch in batches:
        yield start, batch
        start += len(batch)


def _places(
    component: Component, language: str | None, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Shard and row of `count` documents (fewer if there are fewer), each as likely as any other."""
    drawn: list[tuple[float, int, int]] = []
    for shard in component.shards:
        for start, batch in _numbered(shard.documents(["language"])):
            rows = np.arange(start, start + len(batch))
            if language is not None:
                rows = rows[pc.equal(batch["language"], language).to_numpy(zero_copy_only=False)]
            keys = rng.random(len(rows))
            for index in np.argsort(keys)[:count].tolist():
                drawn.append((float(keys[index]), shard.number, int(rows[index])))
        drawn = sorted(drawn)[:count]
    return [(shard_number, row) for _, shard_number, row in drawn]
