"""A corpus's last stage, written directly: training and validation documents by language, and pairs with English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from emma.base.manifest import Manifest
from emma.tools.corpus.layout import Part, PartWriter, part_path, schema_of, text_columns

__all__ = ["write_corpus"]

Documents = Mapping[str, Sequence[str]]


def write_corpus(
    root: Path,
    train: Documents,
    validation: Documents | None = None,
    pairs: Mapping[str, Sequence[tuple[str, str, str]]] | None = None,
) -> Path:
    """Writes `root/split`; `pairs` maps a language to (English, other, split)."""
    for language in sorted({*train, *(validation or {})}):
        rows = [
            {
                "id": f"{split}/{number}",
                "text": text,
                "language": language,
                "source": "tiny",
                "license": "CC0-1.0",
                "split": split,
            }
            for split, texts in (
                ("train", train.get(language, ())),
                ("validation", (validation or {}).get(language, ())),
            )
            for number, text in enumerate(texts)
        ]
        _write(root, "monolingual", language, rows)
    for language, sentences in (pairs or {}).items():
        rows = [
            {"id": f"{language}/{number}", "src_lang": "eng_Latn", "src_text": english, "tgt_lang": language, "tgt_text": other,
             "source": "tiny", "license": "CC0-1.0", "split": split}
            for number, (english, other, split) in enumerate(sentences)
        ]  # fmt: skip
        _write(root, "parallel", f"eng_Latn-{language}", rows)
    Manifest("corpus/split", "", extra={"data": "tiny", "fingerprint": "0" * 64}).write(root / "split")
    return root


def _write(root: Path, kind: str, name: str, rows: list[dict[str, str]]) -> None:
    schema = schema_of(kind, "split")
    with PartWriter(part_path(root, "split", Part(kind, name, 0)), schema, text_columns(kind)) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=schema))
