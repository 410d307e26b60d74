"""Held-out documents: the validation part of the split corpus, per kind and language."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.errors import UserError

__all__ = ["Document", "HeldOut", "find_heldout", "read_documents"]

_COLUMNS = ("id", "text", "split")


@dataclass(frozen=True)
class Document:
    """One document; `text` is evaluated as it stands."""

    id: str
    text: str


@dataclass(frozen=True)
class HeldOut:
    """The files that hold the documents of one language (or pair) of one kind."""

    kind: str
    language: str
    files: tuple[Path, ...]


def find_heldout(
    text: Path, kinds: Collection[str] | None = None, languages: Collection[str] | None = None
) -> list[HeldOut]:
    """Languages with held-out text, sorted by kind and language.

    Args:
        text: a corpus folder, or its `split` stage: `<kind>/<language or pair>/part-NNNNN.parquet`.
        kinds: kinds to take, e.g. `monolingual`; default all.
        languages: languages or pairs to take; default all.

    Raises:
        UserError: no such folder, no parquet in it, or a kind or language that it has not.
    """
    root = text / "split" if (text / "split").is_dir() else text
    if not root.is_dir():
        raise UserError(
            f"{text}: no such folder; write it with `emma corpus build`, or name another with --text"
        )
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.glob("*/*/*.parquet")):
        found.setdefault((path.parent.parent.name, path.parent.name), []).append(path)
    if not found:
        raise UserError(f"{root}: no <kind>/<language>/*.parquet in it, so no held-out text")
    for name, wanted, known in (
        ("kind", kinds, {kind for kind, _ in found}),
        ("language", languages, {language for _, language in found}),
    ):
        if unknown := sorted(set(wanted or ()) - known):
            raise UserError(
                f"{root}: no {name} {', '.join(unknown)} in it; there are {', '.join(sorted(known))}"
            )
    return [
        HeldOut(kind, language, tuple(files))
        for (kind, language), files in sorted(found.items())
        if (not kinds or kind in kinds) and (not languages or language in languages)
    ]


def read_documents(heldout: HeldOut, limit: int | None = None) -> list[Document]:
    """Validation documents of one language, in the order of their ids' hashes, at most `limit` of them.

    The order does not depend on how files are cut, so a limit always keeps the same documents. Empty documents are
    left out: they hold no byte to predict.

    Raises:
        UserError: a file is no parquet, or lacks a column.
    """
    documents = [
        Document(str(row["id"]), row["text"]) for path in heldout.files for row in _rows(path) if row["text"]
    ]
    documents.sort(key=lambda document: (hashlib.sha256(document.id.encode()).digest(), document.id))
    return documents[:limit]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    try:
        part = ds.dataset(path, format="parquet")
        missing = [name for name in _COLUMNS if name not in part.schema.names]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; it is not an output of the split stage")
        # The filter skips row groups by their statistics, so the training part is not read.
        scanner = part.scanner(columns=["id", "text"], filter=pc.field("split") == "validation")
        for batch in scanner.to_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error}); write the split stage again") from None
