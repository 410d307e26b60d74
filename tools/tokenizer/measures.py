"""What a tokenizer costs each language: tokens for the same text, and why.

All figures of a language are quotients of sums over its text, never means over sentences. Premium: Petrov et al. 2023
(arXiv 2305.15425). Fertility: Rust et al. 2021 (arXiv 2012.15613). Retention: Single Token Retention Rate
(arXiv 2510.09947). The floor and the partial share are this project's.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import batched
from typing import Any

import numpy as np
import pyarrow as pa

from emma.base.errors import UserError
from emma.tools.languages.scripts import SPACELESS, script_of
from emma.tools.pack.engine import load_engine, usable_engine
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.bpe import SPACE, Bpe, splitting_steps
from emma.tools.tokenizer.words import ENGLISH

__all__ = ["FEW_PAIRS", "Cost", "Meter", "Pairs", "Summary", "gini", "measure", "summary"]

FEW_PAIRS = 100
"""With fewer aligned sentences, a premium is given with an interval."""

_RESAMPLES = 1000
_BATCH = 512
_TYPES = 2000
"""Word types of a language whose retention is looked at, the most frequent first."""


@dataclass(frozen=True)
class Cost:
    """What a tokenizer costs one language; None where its text cannot say.

    Attributes:
        language: its code.
        documents, bytes, tokens: of the monolingual text.
        not_nfc: documents that were not in Unicode's form NFC, in which all are counted.
        bytes_per_token: UTF-8 bytes a token.
        fertility: tokens a word between white space; None for scripts without it.
        retention: share of the most frequent 2,000 word types that are one token with a space in front.
        partial: share of tokens that are no valid UTF-8 by themselves.
        one_byte: share of tokens that are one byte and no ASCII, or `<0xXX>`.
        pairs: sentences aligned with English.
        premium: tokens of these sentences, by the tokens of their English side.
        low, high: 95 % interval of the premium (bootstrap over sentences), where there are fewer than 100.
        floor: pre-tokens of these sentences by the English tokens, which no vocabulary under this pattern goes below.
        context: bytes of the language that a context of tokens holds, by the bytes of English that it holds.
        cost: FLOPs for a sentence, by the first tokenizer's for its English side.
    """

    language: str
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    not_nfc: int = 0
    bytes_per_token: float | None = None
    fertility: float | None = None
    retention: float | None = None
    partial: float | None = None
    one_byte: float | None = None
    pairs: int = 0
    premium: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    context: float | None = None
    cost: float | None = None


@dataclass
class Pairs:
    """Tokens of aligned sentences: of the language, of their English side, and pre-tokens of the language."""

    tokens: list[int] = field(default_factory=list)
    english: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    @property
    def premium(self) -> float | None:
        """Tokens by English tokens."""
        return sum(self.tokens) / sum(self.english) if sum(self.english) else None

    @property
    def floor(self) -> float | None:
        """Pre-tokens by English tokens."""
        return sum(self.words) / sum(self.english) if sum(self.english) else None

    def interval(self, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
        """95 % interval of the premium over sentences drawn again, where there are few; the same for the same counts."""
        count = len(self.tokens)
        if not 1 < count < FEW_PAIRS:
            return None, None
        drawn = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
        tokens, english = np.array(self.tokens)[drawn].sum(1), np.array(self.english)[drawn].sum(1)
        low, high = np.percentile(tokens[english > 0] / english[english > 0], (2.5, 97.5))
        return float(low), float(high)


class Meter:
    """A tokenizer, and what it makes of text."""

    def __init__(self, file: TokenizerFile) -> None:
        self.file = file
        self._engine = load_engine(usable_engine("fastest", file)[0], file)
        self._steps = splitting_steps(file.plain)
        size = max(file.ids.values()) + 1
        self.partial, self.one_byte = (np.zeros(size, bool) for _ in range(2))
        try:
            self.bpe: Bpe | None = Bpe.read(file)
        except UserError:
            self.bpe = None  # WordPiece and the like have no bytes to look at
        if self.bpe is not None:
            added = set(file.added)
            for token, id_ in file.ids.items():
                if token not in added:
                    self._look_at(self.bpe, token, id_)
        # Some normalizers put the space in front themselves.
        names = {id_: token for token, id_ in file.ids.items()}
        self._space = "" if names[int(self.encode(["a"])[0][0])].startswith(SPACE) else " "

    def _look_at(self, bpe: Bpe, token: str, id_: int) -> None:
        try:
            content = bpe.bytes_of(token)
        except KeyError:
            return  # a token in no byte's spelling; nothing reaches it
        fallback = id_ in bpe.byte_ids
        self.one_byte[id_] = fallback or (len(content) == 1 and content[0] > 127)
        try:
            content.decode()
        except UnicodeDecodeError:
            self.partial[id_] = True
        self.partial[id_] |= fallback

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, normalised to NFC."""
        found = []
        for few in batched(texts, _BATCH):
            encoded = self._engine.encode(pa.array([nfc(text) for text in few], pa.large_string()))
            found += [encoded.ids[encoded.offsets[n] : encoded.offsets[n + 1]] for n in range(len(few))]
        return found

    def pre_tokens(self, text: str) -> int:
        """Number of parts that the pattern splits a text into: no token reaches across them. SentencePiece's kind splits
        nothing; there, it is the number of words between white space."""
        if self.bpe is not None and self.bpe.byte_fallback:
            return len(nfc(text).split())
        normalizer, pre_tokenizer = self._steps
        text = nfc(text)
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        return len(pre_tokenizer.pre_tokenize_str(text)) if pre_tokenizer is not None else 1

    def is_one_token(self, words: Iterable[str]) -> list[bool]:
        """Whether each word, with a space in front, is one token."""
        return [len(ids) == 1 for ids in self.encode([self._space + word for word in words])]


def nfc(text: str) -> str:
    """The text in the form that the corpus keeps it in."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def measure(
    file: TokenizerFile,
    texts: Mapping[str, Sequence[str]],
    aligned: Mapping[str, Sequence[tuple[str, str]]],
    *,
    flops: float = 1.0,
    first: tuple[float, Mapping[str, Pairs]] | None = None,
) -> tuple[dict[str, Cost], dict[str, Pairs]]:
    """Costs of one tokenizer.

    Args:
        file: the tokenizer.
        texts: monolingual text by language.
        aligned: by language, sentences and their English side; one set, so that premiums have one denominator.
        flops: FLOPs of the model for a token with this vocabulary.
        first: of `cost`: the first tokenizer's FLOPs a token and pairs; None: this is the first.

    Returns:
        By language: its cost, and the counts of its pairs.
    """
    meter = Meter(file)
    counts = {language: _pairs(meter, own) for language, own in aligned.items()}
    found: dict[str, Cost] = {}
    languages = sorted({*texts, *aligned})
    for language in languages:
        own = counts.get(language, Pairs())
        low, high = own.interval()
        found[language] = Cost(
            **_monolingual(meter, language, texts.get(language, ())),
            pairs=len(own.tokens),
            premium=own.premium,
            low=low,
            high=high,
            floor=own.floor,
        )
    english = found.get(ENGLISH)
    unit, reference = first or (flops, counts)
    for language, cost in found.items():
        ratio = spent = None
        if cost.bytes_per_token and english is not None and english.bytes_per_token:
            ratio = cost.bytes_per_token / english.bytes_per_token
        if language in reference and (tokens := sum(reference[language].english)):
            spent = sum(counts[language].tokens) * flops / (tokens * unit)
        found[language] = replace(cost, context=ratio, cost=spent)
    return found, counts


def _pairs(meter: Meter, aligned: Sequence[tuple[str, str]]) -> Pairs:
    own = [len(ids) for ids in meter.encode([text for text, _ in aligned])]
    english = [len(ids) for ids in meter.encode([other for _, other in aligned])]
    return Pairs(own, english, [meter.pre_tokens(text) for text, _ in aligned])


def _monolingual(meter: Meter, language: str, texts: Sequence[str]) -> dict[str, Any]:
    if not texts:
        return {"language": language}
    ids = meter.encode(texts)
    normal = [nfc(text) for text in texts]
    tokens, size = sum(map(len, ids)), sum(len(text.encode()) for text in normal)
    every = np.concatenate(ids).astype(np.int64) if tokens else np.empty(0, np.int64)
    spaced = script_of(language) not in SPACELESS
    words: dict[str, int] = defaultdict(int)
    if spaced:
        for text in normal:
            for word in text.split():
                words[word] += 1
    types = sorted(words, key=lambda word: (-words[word], word))[:_TYPES]
    known = meter.bpe is not None and tokens > 0
    return {
        "language": language,
        "documents": len(texts),
        "bytes": size,
        "tokens": tokens,
        "not_nfc": sum(text is not kept for text, kept in zip(texts, normal, strict=True)),
        "bytes_per_token": size / tokens if tokens else None,
        "fertility": tokens / sum(words.values()) if words else None,
        "retention": sum(meter.is_one_token(types)) / len(types) if types else None,
        "partial": float(meter.partial[every].mean()) if known else None,
        "one_byte": float(meter.one_byte[every].mean()) if known else None,
    }


@dataclass(frozen=True)
class Summary:
    """Premiums over all languages with pairs, English left out."""

    languages: int
    median: float
    mean: float
    p90: float
    maximum: float
    gini: float
    tokens: int


def summary(costs: Mapping[str, Cost], counts: Mapping[str, Pairs]) -> Summary | None:
    """The summary line; None without pairs."""
    names = [name for name, cost in costs.items() if name != ENGLISH and cost.premium is not None]
    if not names:
        return None
    premiums = np.array([costs[name].premium for name in names])
    return Summary(
        len(names),
        float(np.median(premiums)),
        float(premiums.mean()),
        float(np.percentile(premiums, 90)),
        float(premiums.max()),
        gini(premiums),
        sum(sum(counts[name].tokens) for name in names),
    )


def gini(values: np.ndarray) -> float:
    """Gini index: 0 where all values are equal, near 1 where one has all."""
    ordered = np.sort(values)
    count = len(ordered)
    ranks = np.arange(1, count + 1)
    return float((2 * ranks - count - 1) @ ordered / (count * ordered.sum()))
