"""Training documents of a built corpus, for the tokenizer and the base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from emma.base.errors import UserError

__all__ = ["languages_of", "training_documents"]


def languages_of(corpus: Path, kind: str) -> list[str]:
    """Languages (or pairs) of a kind in the corpus's last stage, sorted.

    Raises:
        UserError: the corpus is not built.
    """
    folder = corpus / "split" / kind
    languages = sorted(path.name for path in folder.glob("*") if any(path.glob("part-*.parquet")))
    if not languages:
        raise UserError(f"{folder}: holds no text; build the corpus first (emma corpus build)")
    return languages


def training_documents(corpus: Path, kind: str, language: str) -> Iterator[str]:
    """Texts of the documents that train, in their order on disk; a pair's two sides are joined by a line end."""
    import pyarrow.parquet as pq

    columns = ["src_text", "tgt_text"] if kind == "parallel" else ["text"]
    for path in sorted((corpus / "split" / kind / language).glob("part-*.parquet")):
        for row in pq.read_table(path, columns=[*columns, "split"]).to_pylist():
            if row["split"] == "train":
                yield "\n".join(row[column] for column in columns)
