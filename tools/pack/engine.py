"""Tokenizer engines behind one interface, and the gate that admits a fast one.

Text that spells a control token (`<|end_of_text|>`) stays text: every engine is loaded with the control tokens under
names that no text spells (`tokenizer_file.py`).
"""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emma.base.errors import UserError
from emma.base.processes import release_memory
from emma.tools.pack.encoded import Encoded, agree, interleave, joined
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = [
    "ENGINES",
    "REFERENCE",
    "Encoder",
    "Engine",
    "EngineName",
    "choose_engine",
    "encode_or_none",
    "engines_for",
    "forget_engine",
    "gate_sample",
    "load_engine",
    "sides_of",
    "usable_engine",
]

EngineName = Literal["gigatoken", "fastokens", "tokenizers"]
ENGINES: tuple[EngineName, ...] = ("gigatoken", "fastokens", "tokenizers")
"""Fastest first, as measured by `benchmarks/pack.py`; the last one is the reference."""
REFERENCE: EngineName = "tokenizers"


class EngineError(Exception):
    """A fast engine failed on a text."""


class UnreadableTokenizerError(UserError):
    """An engine does not support something that a tokenizer.json asks for."""


class Engine(Protocol):
    """Encodes texts without adding any token of its own."""

    def encode(self, texts: pa.Array) -> Encoded:
        """Encodes a large-string array without nulls.

        Raises:
            EngineError: the engine failed.
        """


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Turns whatever a fast engine raises into EngineError; a Rust panic is not even an Exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise EngineError(f"{type(error).__name__}: {error}") from error
        raise


# gigatoken caches every word it meets, about 0.2 GiB per gigabyte of text; reloading it takes under a second.
# fastokens may do the same, so it is treated alike.
RENEW_BYTES = 256 << 20


class _Renewed(ABC):
    """An engine that is reloaded after every `RENEW_BYTES` of text, so that its cache of words stays
    bounded."""

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self._file = tokenizer
        self._encoded = 0
        self._tokenizer = self._load()

    @abstractmethod
    def _load(self) -> Any:
        """The engine's own tokenizer, with an empty cache."""

    def _renew(self, texts: pa.Array) -> None:
        if self._encoded > RENEW_BYTES:
            self._tokenizer = None  # frees the old one before the new one is loaded
            self._tokenizer = self._load()
            self._encoded = 0
        self._encoded += texts.nbytes


class _Gigatoken(_Renewed):
    def _load(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._file.plain)

    def encode(self, texts: pa.Array) -> Encoded:
        # One call per text costs a microsecond; the batch call would import `awkward`, which takes two
        # seconds.
        with _engine_errors():
            self._renew(texts)
            # UTF-8 straight from the array: a third faster than through Python strings.
            encode = self._tokenizer.backend.encode
            return joined([encode(text) for text in texts.cast(pa.large_binary()).to_pylist()])


class _Fastokens(_Renewed):
    def _load(self) -> Any:
        from fastokens._native import Tokenizer as Native

        return Native.from_json_str(self._file.plain)

    def encode(self, texts: pa.Array) -> Encoded:
        with _engine_errors():
            self._renew(texts)
            ids, offsets = self._tokenizer.encode_batch_flat(texts.to_pylist())
        return Encoded(np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64))


class _Reference:
    def __init__(self, tokenizer: TokenizerFile) -> None:
        from emma.tools.pack.reference import reference_of

        self._tokenizer = reference_of(tokenizer.take_parsed())

    def vocabulary(self) -> dict[str, int]:
        """Ids by token, as the library numbers them."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, texts: pa.Array) -> Encoded:
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        return joined([np.array(encoding.ids, np.uint32) for encoding in encodings])


_CLASSES: Mapping[EngineName, type[_Gigatoken] | type[_Fastokens] | type[_Reference]] = {
    "gigatoken": _Gigatoken,
    "fastokens": _Fastokens,
    "tokenizers": _Reference,
}


def choose_engine(wanted: str) -> EngineName:
    """The engine that `data.pack.engine` of a recipe selects on this machine, for any tokenizer.

    Raises:
        UserError: the wanted engine is not installed.
    """
    if wanted == "fastest":
        return next(name for name in ENGINES if importlib.util.find_spec(name) is not None)
    for name in ENGINES:
        if name == wanted:
            if importlib.util.find_spec(name) is None:
                raise UserError(
                    f"data.pack.engine: {name} is not installed; pip install {name}, or use `fastest`"
                )
            return name
    raise UserError(f"data.pack.engine: no engine {wanted!r}; expected one of {', '.join(ENGINES)}")


def engines_for(wanted: str) -> list[EngineName]:
    """Engines that `data.pack.engine` of a recipe admits on this machine, the preferred one first.

    Raises:
        UserError: the wanted engine is not installed.
    """
    if wanted == "fastest":
        return [name for name in ENGINES if importlib.util.find_spec(name) is not None]
    return [choose_engine(wanted)]


def load_engine(name: EngineName, tokenizer: TokenizerFile) -> Engine:
    """Loads an engine with the control tokens taken out; a process keeps the fast one and the reference it
    loaded last.

    Raises:
        UserError: the engine cannot read this tokenizer.
    """
    return (_load_reference if name == REFERENCE else _load_fast)(name, tokenizer)


@functools.lru_cache(maxsize=2)
def usable_engine(wanted: str, tokenizer: TokenizerFile) -> tuple[EngineName, dict[str, str]]:
    """The engine that `data.pack.engine` of a recipe selects for a tokenizer, loaded, and why faster ones
    were passed over: `fastest` is the fastest one that can read it (no fast engine reads all of Hugging
    Face's pre-tokenizers).

    Raises:
        UserError: the wanted engine is not installed or cannot read this tokenizer, or one that is installed
            is broken.
    """
    passed_over: dict[str, str] = {}
    if wanted == "fastest":
        for name in ENGINES:
            if name != REFERENCE and importlib.util.find_spec(name) is not None:
                try:
                    load_engine(name, tokenizer)
                except UnreadableTokenizerError as error:
                    passed_over[name] = str(error)
                else:
                    return name, passed_over
        wanted = REFERENCE
    name = choose_engine(wanted)
    load_engine(name, tokenizer)
    return name, passed_over


def forget_engine(name: EngineName) -> None:
    """Returns an engine's memory to the system; the next use loads it again."""
    (_load_reference if name == REFERENCE else _load_fast).cache_clear()
    usable_engine.cache_clear()
    release_memory()


def _load(name: EngineName, tokenizer: TokenizerFile) -> Engine:
    try:
        with _engine_errors():
            return _CLASSES[name](tokenizer)
    except EngineError as error:
        message = f"{tokenizer.path}: {name} cannot load it ({' '.join(str(error).split())})"
        if isinstance(error.__cause__, ImportError | MemoryError):
            raise UserError(message) from error
        raise UnreadableTokenizerError(message) from error


_load_fast = functools.lru_cache(maxsize=1)(_load)
_load_reference = functools.lru_cache(maxsize=1)(_load)


def encode_or_none(engine: Engine, texts: pa.Array) -> Encoded | None:
    """A fast engine's result; None where it fails."""
    try:
        return engine.encode(texts)
    except EngineError:
        return None


@dataclass
class Encoder:
    """A fast engine, with the reference for the languages that the gate refused it.

    Args:
        tokenizer: the tokenizer.
        name: the fast engine.
        refused: languages that only the reference may encode.
        trusted: languages that the gate admitted; others are gated on their first documents.
        gate_documents: documents per language that the gate compares.
        pairs: whether documents are of language pairs; the gate looks at each language of a pair by itself.
    """

    tokenizer: TokenizerFile
    name: EngineName
    refused: set[str] = field(default_factory=set)
    trusted: set[str] = field(default_factory=set)
    gate_documents: int = 32
    pairs: bool = False

    @property
    def _fast(self) -> Engine:
        return load_engine(self.name, self.tokenizer)

    @property
    def reference(self) -> Engine:
        """The reference."""
        return load_engine(REFERENCE, self.tokenizer)

    def encode(self, texts: pa.Array, languages: pa.Array) -> Encoded:
        """Encodes documents (large strings without nulls), each with the engine its language may use.

        Raises:
            UserError: a text was encoded as a control token.
        """
        if self.name == REFERENCE:
            return self.checked(self.reference.encode(texts), texts)
        for language in pc.unique(languages).to_pylist():
            if not self._sides(language) <= self.refused | self.trusted:
                self.gate(texts.filter(pc.equal(languages, language)), language)
        try:
            return self.checked(self._encode_by_language(texts, languages), texts)
        except EngineError:
            self._refuse_failing(texts, languages)
            return self.checked(self._encode_by_language(texts, languages), texts)

    def by_reference(self, languages: pa.Array) -> np.ndarray:
        """Which documents are of a language that only the reference may encode, as bools."""
        if self.name == REFERENCE:
            return np.ones(len(languages), bool)
        present = pc.unique(languages).to_pylist() if self.refused else []
        refused = [language for language in present if self._sides(language) & self.refused]
        return pc.is_in(languages, pa.array(refused, pa.large_string())).to_numpy(zero_copy_only=False)

    def _sides(self, language: str) -> set[str]:
        """The languages that the gate knows a document's language by."""
        return sides_of(language, pairs=self.pairs)

    def _encode_by_language(self, texts: pa.Array, languages: pa.Array) -> Encoded:
        slow = self.by_reference(languages)
        if not slow.any():
            return self._fast.encode(texts)
        parts = {
            True: self.reference.encode(texts.filter(pa.array(slow))),
            False: self._fast.encode(texts.filter(pa.array(~slow))),
        }
        return interleave(parts, slow)

    def _refuse_failing(self, texts: pa.Array, languages: pa.Array) -> None:
        """Refuses languages whose texts the fast engine cannot encode, although the gate's sample passed."""
        for language in pc.unique(languages).to_pylist():
            try:
                self._fast.encode(texts.filter(pc.equal(languages, language)))
            except EngineError:
                self.trusted -= self._sides(language)
                self.refused |= self._sides(language)

    def gate(self, texts: pa.Array, language: str) -> bool:
        """Compares both engines on the first texts of a language; the language is trusted or refused from
        then on."""
        sample = gate_sample(texts, self.gate_documents)
        equal = agree(encode_or_none(self._fast, sample), self.reference.encode(sample))
        if equal:
            self.trusted |= self._sides(language) - self.refused
        else:
            self.refused |= self._sides(language)
            self.trusted -= self._sides(language)
        return equal

    def checked(self, encoded: Encoded, texts: pa.Array) -> Encoded:
        """The ids, if no text became a control token or one beyond the model's vocabulary."""
        ids, control = encoded.ids, self.tokenizer.control_ids
        if not len(ids):
            return encoded
        smallest, largest = int(ids.min()), int(ids.max())
        if largest >= self.tokenizer.vocab_size:
            raise UserError(
                f"{self.tokenizer.path}: gave id {largest}, but model.vocab_size is {self.tokenizer.vocab_size}"
            )
        # Most tokenizers have all control tokens at one end of the vocabulary: a comparison is enough.
        first, after = np.searchsorted(control, (smallest, largest + 1)).tolist()
        hits = np.isin(ids, control[first:after]) if after > first else np.zeros(0, bool)
        if hits.any():
            at = int(np.flatnonzero(hits)[0])
            document = int(np.searchsorted(encoded.offsets, at, side="right")) - 1
            text = texts[document].as_py()
            raise UserError(
                f"{self.tokenizer.path}: a text was encoded as the control token {int(ids[at])}; it starts "
                f"{text[:60]!r}. A control token must not be one that ordinary text is made of: name another "
                "document boundary, mark the token as not special in tokenizer.json, or remove it from the text"
            )
        return encoded


def sides_of(language: str, *, pairs: bool) -> set[str]:
    """The two languages of a pair (`eng_Latn-fra_Latn`), or the language itself."""
    return set(language.split("-")) if pairs else {language}


GATE_BYTES = 8 << 10
"""Most UTF-8 bytes per language that the gate compares."""


def gate_sample(texts: pa.Array, documents: int) -> pa.Array:
    """The first documents, at most `documents` and 8 KiB; a longer first document is cut."""
    sample = texts[:documents]
    sizes = np.cumsum(pc.binary_length(sample).to_numpy(zero_copy_only=False))
    count = int(np.searchsorted(sizes, GATE_BYTES, side="right"))
    if count == 0 and len(sample):
        beginning = sample[0].as_py().encode()[:GATE_BYTES].decode(errors="ignore")
        return pa.array([beginning], sample.type)
    # A copy: a slice would send its whole column to another process.
    return pa.concat_arrays([sample[:count]])
