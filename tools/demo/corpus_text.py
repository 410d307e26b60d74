"""Training documents of a built corpus, for the demo's tokenizer and base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from emma.base.errors import UserError

__all__ = ["languages_of", "training_documents"]


def languages_of(corpus: Path, kind: str) -> list[str]:
    """Languages (or pairs) of a kind in the last stage of the corpus, sorted.

    Raises:
        UserError: the corpus is not built.
    """
    folder = corpus / "split" / kind
    languages = sorted(path.name for path in folder.glob("*") if any(path.glob("part-*.parquet")))
    if not languages:
        raise UserError(f"{folder}: no text; build the corpus first (emma corpus build)")
    return languages


def training_documents(corpus: Path, kind: str, language: str) -> Iterator[str]:
    """Texts of the training documents, in their order on disk; the two sides of a pair are joined by a newline."""
    import pyarrow.parquet as pq

    columns = ["src_text", "tgt_text"] if kind == "parallel" else ["text"]
    for path in sorted((corpus / "split" / kind / language).glob("part-*.parquet")):
        for row in pq.read_table(path, columns=[*columns, "split"]).to_pylist():
            if row["split"] == "train":
                yield "\n".join(row[column] for column in columns)
