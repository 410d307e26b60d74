"""Journal of a model's finished languages, so that an interrupted evaluation repeats none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from emma.base.files import append_line
from emma.tools.evaluation.heldout import Document

__all__ = ["DocumentScore", "Journal", "LanguageScores", "text_sha256"]


@dataclass(frozen=True)
class DocumentScore:
    """Score of one document: UTF-8 bytes, scored tokens, and the sum of their negative log-likelihoods in nats."""

    id: str
    bytes: int
    tokens: int
    nll: float


@dataclass(frozen=True)
class LanguageScores:
    """Scores of the documents of one kind in one language.

    `signature`, `model_sha256` and `text_sha256` identify the method, the model and the text.
    """

    kind: str
    language: str
    signature: str
    model_sha256: str
    text_sha256: str
    documents: tuple[DocumentScore, ...]


def text_sha256(documents: Sequence[Document]) -> str:
    """SHA-256 over the documents' ids and texts."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(orjson.dumps([document.id, document.text]))
    return digest.hexdigest()


class Journal:
    """An append-only file of `LanguageScores` with one writer; a line that a crash cut short is written again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, scores: LanguageScores) -> None:
        """Adds a finished language; each line is a single write."""
        record = {
            "kind": scores.kind,
            "language": scores.language,
            "signature": scores.signature,
            "model_sha256": scores.model_sha256,
            "text_sha256": scores.text_sha256,
            "documents": [[d.id, d.bytes, d.tokens, d.nll] for d in scores.documents],
        }
        self._cut_last_line()
        append_line(self.path, orjson.dumps(record))

    def read(self, signature: str, model_sha256: str) -> dict[tuple[str, str], LanguageScores]:
        """Languages finished with this signature and model, by kind and language; later lines win."""
        found: dict[tuple[str, str], LanguageScores] = {}
        if not self.path.is_file():
            return found
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue  # cut short by a crash: its language counts as unfinished
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # so were lines that earlier versions ended afterwards
            if record["signature"] != signature or record["model_sha256"] != model_sha256:
                continue
            found[record["kind"], record["language"]] = LanguageScores(
                record["kind"],
                record["language"],
                signature,
                model_sha256,
                record["text_sha256"],
                tuple(DocumentScore(*row) for row in record["documents"]),
            )
        return found

    def _cut_last_line(self) -> None:
        """Removes a line that a crash cut short."""
        if not self.path.is_file() or self.path.stat().st_size == 0:
            return
        with self.path.open("rb+") as handle:
            handle.seek(-1, 2)
            if handle.read(1) != b"\n":
                handle.seek(0)
                handle.truncate(handle.read().rfind(b"\n") + 1)
