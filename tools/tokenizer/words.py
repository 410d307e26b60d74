"""Words of a corpus's training documents, counted by language: all that the extension learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from emma.base.errors import UserError
from emma.base.processes import process_pool, result_of
from emma.tools.corpus.layout import Part, part_path, parts_of, read_row_groups
from emma.tools.pack.languages import split_pair
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.bpe import Bpe

__all__ = ["ENGLISH", "KINDS", "Counted", "Words", "aligned_texts", "by_language", "count_words", "documents"]

KINDS = ("monolingual", "parallel", "books", "papers", "instruction")
"""Kinds of text that languages are counted in; those of `code` are programming languages."""

ENGLISH = "eng_Latn"


def by_language(root: Path, kinds: Sequence[str] = KINDS) -> dict[str, list[tuple[Part, str]]]:
    """Parts of a corpus that hold text of a language, with the column of that text, sorted by language.

    Raises:
        UserError: the corpus is not built.
    """
    found: dict[str, list[tuple[Part, str]]] = {}
    for part in parts_of(root, "split") if (root / "split").is_dir() else ():
        if part.kind not in kinds:
            continue
        if part.kind == "parallel":
            for side, column in zip(split_pair(part.language), ("src_text", "tgt_text"), strict=True):
                found.setdefault(side, []).append((part, column))
        else:
            found.setdefault(part.language, []).append((part, "text"))
    if not found:
        raise UserError(f"{root}: no text of {', '.join(kinds)}; build the corpus first (emma corpus build)")
    return dict(sorted(found.items()))


def documents(root: Path, part: Part, column: str, split: str) -> Iterator[str]:
    """Texts of a part that are in a split (`train` or `validation`), in their order on disk."""
    for table in read_row_groups(part_path(root, "split", part), [column, "split"]):
        yield from table.filter(pc.equal(table["split"], split))[column].to_pylist()


def aligned_texts(root: Path, split: str) -> Iterator[tuple[str, str, str, str]]:
    """Sentence pairs with English: language, source, its text, the English text.

    Args:
        root: the corpus.
        split: `train`, `validation`, or `all`.
    """
    for part in parts_of(root, "split") if (root / "split").is_dir() else ():
        if part.kind != "parallel":
            continue
        sides = split_pair(part.language)
        if ENGLISH not in sides or sides[0] == sides[1]:
            continue
        own, english = ("tgt_text", "src_text") if sides[0] == ENGLISH else ("src_text", "tgt_text")
        language = sides[1] if sides[0] == ENGLISH else sides[0]
        for table in read_row_groups(part_path(root, "split", part), [own, english, "source", "split"]):
            if split != "all":
                table = table.filter(pc.equal(table["split"], split))
            for source, text, other in zip(
                *(table[name].to_pylist() for name in ("source", own, english)), strict=True
            ):
                yield language, source, text, other


@dataclass(frozen=True)
class Counted:
    """What one language has.

    Attributes:
        language: its code.
        documents: documents read.
        bytes: their UTF-8 bytes.
        words: distinct words, and how often each occurs (int64).
        aligned: how often each occurs in sentence pairs with English (int64); those pairs are part of the text.
        english: tokens of the base on the English side of these pairs.
    """

    language: str
    documents: int
    bytes: int
    words: tuple[list[str], np.ndarray]
    aligned: np.ndarray
    english: int


@dataclass(frozen=True)
class Words:
    """Distinct words of all languages, sorted, and their counts.

    Attributes:
        words: in the vocabulary's spelling.
        languages: codes, sorted.
        bytes: UTF-8 bytes of each language's text, int64.
        documents: of each language, int64.
        english: tokens on the English side of each language's pairs, int64.
        word, language, count, aligned: int64, one entry per word and language in which it occurs, sorted by word.
    """

    words: list[str]
    languages: list[str]
    bytes: np.ndarray
    documents: np.ndarray
    english: np.ndarray
    word: np.ndarray
    language: np.ndarray
    count: np.ndarray
    aligned: np.ndarray

    @property
    def without_pairs(self) -> list[str]:
        """Languages that parity cannot serve: they have no sentence pair with English."""
        return [
            name for name, tokens in zip(self.languages, self.english.tolist(), strict=True) if not tokens
        ]


def count_words(bpe: Bpe, root: Path, limit: int, *, workers: int = 1, pairs: bool = False) -> Words:
    """Counts the words of the training documents, at most `limit` bytes of each language (and the document that passes
    it); the result is the same for any number of processes.

    Args:
        bpe: the base tokenizer.
        root: the corpus.
        limit: bytes.
        workers: processes.
        pairs: also count what stands in pairs with English, and the English side's tokens.

    Raises:
        UserError: there is no training text.
    """
    parts = by_language(root)
    # The largest first, so that no process is left with one at the end.
    sizes = {
        language: sum(part_path(root, "split", part).stat().st_size for part, _ in own)
        for language, own in parts.items()
    }
    order = sorted(parts, key=lambda language: (-sizes[language], language))
    shares = [order[place::workers] for place in range(workers)]
    with process_pool(workers, preload=["emma.tools.tokenizer.words", "tokenizers"]) as pool:
        tasks = [
            pool.submit(
                _count_share, bpe.file, bpe.value, root, {name: parts[name] for name in share}, limit, pairs
            )
            for share in shares
            if share
        ]
        counted = sorted((one for task in tasks for one in result_of(task)), key=lambda one: one.language)
    counted = [one for one in counted if one.bytes]
    if not counted:
        raise UserError(f"{root}: no training document; lower data.corpus.split.share or add text")
    return _joined(counted)


def _count_share(
    file: TokenizerFile,
    value: dict[str, Any],
    root: Path,
    parts: dict[str, list[tuple[Part, str]]],
    limit: int,
    pairs: bool,
) -> list[Counted]:
    bpe = Bpe(file, value)  # `value` may carry another pattern than the file
    return [_count_language(bpe, root, language, own, limit, pairs) for language, own in parts.items()]


def _count_language(
    bpe: Bpe, root: Path, language: str, parts: Sequence[tuple[Part, str]], limit: int, pairs: bool
) -> Counted:
    chunks: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    english: Counter[str] = Counter()
    number = size = 0
    for part, column in parts:
        with_english = (
            pairs and language != ENGLISH and part.kind == "parallel" and ENGLISH in split_pair(part.language)
        )
        if size >= limit:
            break
        texts = documents(root, part, column, "train")
        others: Iterator[str] = (
            documents(root, part, "src_text" if column == "tgt_text" else "tgt_text", "train")
            if with_english
            else iter(())
        )
        for text in texts:
            size += len(text.encode())
            number += 1
            chunks[with_english].update(bpe.chunks(text))
            if with_english:
                english.update(bpe.chunks(next(others)))
            if size >= limit:
                break
    every, aligned = (bpe.words(chunks[kind]) for kind in (False, True))
    for word, times in aligned.items():
        every[word] = every.get(word, 0) + times
    words = sorted(every)
    tokens = _tokens(bpe, bpe.words(english))
    return Counted(
        language,
        number,
        size,
        (words, np.array([every[word] for word in words], np.int64)),
        np.array([aligned.get(word, 0) for word in words], np.int64),
        tokens,
    )


def _tokens(bpe: Bpe, words: dict[str, int]) -> int:
    """Tokens that the base makes of counted words."""
    ids = bpe.encode_words(list(words)) if words else []
    return sum(len(each) * times for each, times in zip(ids, words.values(), strict=True))


def _joined(counted: Sequence[Counted]) -> Words:
    words = sorted(set().union(*(one.words[0] for one in counted)))
    place = {word: number for number, word in enumerate(words)}
    at = [np.fromiter((place[word] for word in one.words[0]), np.int64, len(one.words[0])) for one in counted]
    language = np.concatenate([np.full(len(each), number, np.int64) for number, each in enumerate(at)])
    word = np.concatenate(at)
    order = np.lexsort((language, word))
    size, documents_, english = (
        np.array([getattr(one, name) for one in counted], np.int64)
        for name in ("bytes", "documents", "english")
    )
    return Words(
        words,
        [one.language for one in counted],
        size,
        documents_,
        english,
        word=word[order],
        language=language[order],
        count=np.concatenate([one.words[1] for one in counted])[order],
        aligned=np.concatenate([one.aligned for one in counted])[order],
    )
