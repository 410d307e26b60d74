"""The text on which logits are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from emma.base.errors import UserError
from emma.checkpoints_conversion.tokenizer_files import load_engine

__all__ = ["MIXED", "Sequences", "read_texts", "sample_texts", "tokenize"]

MIXED = "all languages"
_SAMPLE = Path(__file__).parent / "sample.json"


@dataclass(frozen=True)
class Sequences:
    """Token ids to compare on.

    Args:
        languages: language of each sequence.
        ids: token ids of each sequence, at least two.
        tokenizer: folder of the tokenizer that produced them, or how they were produced without one.
    """

    languages: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    tokenizer: str


def sample_texts() -> dict[str, list[str]]:
    """The built-in sample: one paragraph in each of 19 languages and 15 scripts."""
    texts: dict[str, str] = orjson.loads(_SAMPLE.read_bytes())["texts"]
    return {language: [text] for language, text in texts.items()}


def read_texts(path: Path) -> dict[str, list[str]]:
    """Reads texts by language from a file.

    Args:
        path: JSON lines or parquet with columns `text` and `language`, or plain text with one text per line.

    Raises:
        UserError: the file does not exist, or a line lacks these fields.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give JSON lines or parquet with `text` and `language`, or plain text"
        )
    texts: dict[str, list[str]] = {}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.ParquetFile(path)
        if lost := {"text", "language"} - set(table.schema_arrow.names):
            raise UserError(f"{path}: has no column {sorted(lost)[0]!r}; `text` and `language` are needed")
        for batch in table.iter_batches(columns=["text", "language"]):
            for row in batch.to_pylist():
                texts.setdefault(row["language"], []).append(row["text"])
        return texts
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.suffix not in (".jsonl", ".json"):
            if line.strip():
                texts.setdefault("text", []).append(line)
            continue
        try:
            row = orjson.loads(line)
            texts.setdefault(row["language"], []).append(row["text"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not an object with `text` and `language` ({error})") from None
    return texts


def tokenize(
    texts: Mapping[str, Sequence[str]], folder: Path | None, vocab_size: int, length: int, mixed_length: int
) -> Sequences:
    """Texts → token ids, plus one sequence that spans all languages.

    Args:
        texts: language → texts.
        folder: holds `tokenizer.json`; if None, the text's UTF-8 bytes are the ids.
        vocab_size: upper bound (exclusive) of the ids.
        length: maximum tokens per text.
        mixed_length: maximum tokens of the sequence that spans all languages; long, so that errors in the
            position embedding show. 0 omits it.

    Raises:
        UserError: nothing is left to compare on, or the tokenizer has ids that the model lacks.
    """
    rows: list[tuple[str, list[int]]] = []
    if folder is None:
        origin = "none: the UTF-8 bytes of the text are the ids"
        for language, items in texts.items():
            rows += [(language, [byte % vocab_size for byte in text.encode()]) for text in items]
    else:
        origin = str(folder)
        engine = load_engine(folder / "tokenizer.json")
        for language, items in texts.items():
            rows += [(language, encoded.ids) for encoded in engine.encode_batch(list(items))]
    if mixed_length:
        rows.append((MIXED, [token for _, ids in rows for token in ids][:mixed_length]))
    kept = [
        (language, tuple(ids if language == MIXED else ids[:length]))
        for language, ids in rows
        if len(ids) > 1
    ]
    if not kept:
        raise UserError("no text of at least two tokens to compare logits on")
    largest = max(max(ids) for _, ids in kept)
    if largest >= vocab_size:
        raise UserError(
            f"{origin}: gives id {largest}, but the model has {vocab_size} ids; use the model's tokenizer"
        )
    return Sequences(tuple(language for language, _ in kept), tuple(ids for _, ids in kept), origin)
