"""Held-out documents: the validation part of the split corpus, by kind and language."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError

if TYPE_CHECKING:
    from emma.recipes.schema.data import Pack

__all__ = ["Document", "HeldOut", "find_heldout", "read_documents"]

_TEXT_COLUMNS = ("id", "text", "split")
_PAIR_COLUMNS = ("id", "src_lang", "src_text", "tgt_lang", "tgt_text", "split")


@dataclass(frozen=True)
class Document:
    """One document; `text` is evaluated unchanged."""

    id: str
    text: str


@dataclass(frozen=True)
class HeldOut:
    """The files with the documents of one kind in one language (or pair)."""

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
        UserError: no such folder, no parquet files in it, or it lacks a kind or language asked for.
    """
    root = text / "split" if (text / "split").is_dir() else text
    if not root.is_dir():
        raise UserError(
            f"{text}: no such folder; build it with `emma corpus build`, or give another with --text"
        )
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.glob("*/*/*.parquet")):
        found.setdefault((path.parent.parent.name, path.parent.name), []).append(path)
    if not found:
        raise UserError(
            f"{root}: contains no <kind>/<language>/*.parquet, so no held-out text. Fix: name a folder that "
            "`emma corpus build` has written"
        )
    for name, wanted, known in (
        ("kind", kinds, {kind for kind, _ in found}),
        ("language", languages, {language for _, language in found}),
    ):
        if unknown := sorted(set(wanted or ()) - known):
            raise UserError(
                f"{root}: contains no {name} {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
    return [
        HeldOut(kind, language, tuple(files))
        for (kind, language), files in sorted(found.items())
        if (not kinds or kind in kinds) and (not languages or language in languages)
    ]


def read_documents(heldout: HeldOut, limit: int | None = None, pack: Pack | None = None) -> list[Document]:
    """At most `limit` validation documents of one language, ordered by the hashes of their ids.

    The order does not depend on how the text is divided into files, so a limit always keeps the same
    documents. Empty documents are left out, having no byte to predict. Sentence pairs become documents
    exactly as in training.

    Args:
        heldout: the files.
        limit: maximum number of documents; default all.
        pack: how sentence pairs become documents; default the recipes' defaults.

    Raises:
        UserError: a file is not parquet, or lacks a column.
    """
    tables = [(path, _validation_rows(path)) for path in heldout.files]
    if any("src_text" in table.column_names for _, table in tables):
        documents = list(_documents_of_pairs(heldout, tables, pack))
    else:
        documents = [
            Document(str(row["id"]), row["text"]) for _, table in tables for row in table.to_pylist()
        ]
    documents = [document for document in documents if document.text]
    documents.sort(key=lambda document: (hashlib.sha256(document.id.encode()).digest(), document.id))
    return documents[:limit]


def _documents_of_pairs(
    heldout: HeldOut, tables: Sequence[tuple[Path, Any]], pack: Pack | None
) -> Iterator[Document]:
    import pyarrow as pa

    from emma.recipes.schema.data import Pack, PackComponent
    from emma.tools.pack.documents import DocumentMaker
    from emma.tools.pack.inputs import InputFile, Segment
    from emma.tools.pack.records import Batch

    component = PackComponent(kind="bilingual", language=heldout.language)
    maker = DocumentMaker(component, pack or Pack(components={"bilingual": component}))
    for path, table in tables:
        if not len(table):
            continue
        columns = table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))
        segment = Segment(InputFile(str(path), 0, 0), 0, 1)
        for made in maker.add(Batch.of(columns.combine_chunks(), segment)):
            yield from _rows(made)
    for made in maker.finish():
        yield from _rows(made)


def _rows(documents: Any) -> Iterator[Document]:
    for row in documents.select(["document_id", "text"]).to_pylist():
        yield Document(row["document_id"], row["text"])


def _validation_rows(path: Path) -> Any:
    """Arrow table of a file's validation rows; row groups without any are skipped unread."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    try:
        part = ds.dataset(path, format="parquet")
        names = set(part.schema.names)
        columns = _PAIR_COLUMNS if "src_text" in names else _TEXT_COLUMNS
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(
                f"{path}: lacks the column {', '.join(missing)}; it is not an output of the split stage"
            )
        return part.scanner(columns=list(columns), filter=pc.field("split") == "validation").to_table()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error}); write the split stage again") from None
