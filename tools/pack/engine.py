"""Tokenizer engines behind one interface.

Text that spells a control token (`<|end_of_text|>`) stays text: every engine is loaded with the control tokens under
names that no text spells (`tokenizer_file.py`).
"""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from emma.base.errors import UserError
from emma.base.processes import release_memory
from emma.tools.pack.columns import join
from emma.tools.pack.encoded import Bounded, Encoded, IdSet, joined
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = [
    "ENGINES",
    "REFERENCE",
    "Engine",
    "EngineError",
    "EngineName",
    "choose_engine",
    "encode_or_none",
    "engines_for",
    "forget_engine",
    "load_engine",
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

    def encode_bounded(self, texts: pa.Array) -> Bounded | None:
        """Encodes texts as documents, with begin and end of text; None where the engine can only do so without.

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


def _content(texts: pa.Array) -> bytes:
    """The bytes of all texts, one after another."""
    content = texts.buffers()[2]
    return content.to_pybytes() if content is not None and len(texts) else b""


class _ByText:
    """An engine that knows no boundaries."""

    def encode_bounded(self, texts: pa.Array) -> Bounded | None:
        return None


class _Renewed(_ByText, ABC):
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
    def __init__(self, tokenizer: TokenizerFile) -> None:
        super().__init__(tokenizer)
        control, limit = tokenizer.control_ids, tokenizer.vocab_size
        fits = tokenizer.boundary_names is not None and control[-1] < limit
        self._forbidden = IdSet(control, limit) if fits else None

    def _load(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._file.plain)

    def encode(self, texts: pa.Array) -> Encoded:
        if (bounded := self.encode_bounded(texts)) is not None:
            return bounded.some(np.arange(len(texts)))
        with _engine_errors():
            self._renew(texts)
            # UTF-8 straight from the array: a third faster than through Python strings.
            encode = self._tokenizer.backend.encode
            return joined([encode(text) for text in texts.cast(pa.large_binary()).to_pylist()])

    def encode_bounded(self, texts: pa.Array) -> Bounded | None:
        # All texts in one call, with the boundaries between them. (The call for batches would import `awkward`.)
        names, forbidden = self._file.boundary_names, self._forbidden
        if names is None or forbidden is None:
            return None
        with _engine_errors():
            self._renew(texts)
            ids = self._tokenizer.backend.encode(_content(join(*names[:-1], texts, names[-1])))
        file = self._file
        return Bounded.found(ids, len(texts), forbidden, file.begin_of_text_id, file.end_of_text_id)


class _Fastokens(_Renewed):
    def _load(self) -> Any:
        from fastokens._native import Tokenizer as Native

        return Native.from_json_str(self._file.plain)

    def encode(self, texts: pa.Array) -> Encoded:
        with _engine_errors():
            self._renew(texts)
            ids, offsets = self._tokenizer.encode_batch_flat(texts.to_pylist())
        return Encoded(np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64))


class _Reference(_ByText):
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
