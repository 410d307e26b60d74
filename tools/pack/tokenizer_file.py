"""A `tokenizer.json`: its control tokens, the tokens that bound documents, and the form that engines load."""

from __future__ import annotations

import functools
import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from emma.base.errors import UserError
from emma.recipes.schema.model import Tokenizer

__all__ = ["TokenizerFile", "tokenizer_of_process"]


@dataclass(frozen=True)
class _Content:
    """The parts of the file that are used; the whole parsed file would take ten times the memory.

    Attributes:
        sha256: of the file.
        added: ids of all added tokens by content.
        control: ids of the special ones among them, sorted.
        named: ids of the tokens that the recipe names, where the tokenizer has them.
        largest: largest id.
        plain: the file without special added tokens, post-processor, truncation and padding.
    """

    sha256: str
    added: dict[str, int]
    control: np.ndarray
    named: dict[str, int]
    largest: int
    plain: str


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json` and the tokens that bound documents, checked against each other and the model.

    Args:
        settings: the recipe's `model.tokenizer`.
        vocab_size: token ids of the model's embedding, without padding.
    """

    settings: Tokenizer
    vocab_size: int

    def __reduce__(self) -> tuple[Any, ...]:
        # The content is not pickled: each process reads the file once.
        return tokenizer_of_process, (self.settings, self.vocab_size)

    @property
    def path(self) -> Path:
        """The file."""
        folder = Path(self.settings.path)
        return folder if folder.suffix == ".json" else folder / "tokenizer.json"

    @cached_property
    def _content(self) -> _Content:
        content, sha256 = self._read()
        try:
            with _no_garbage_collection():
                value = orjson.loads(content)
            vocab = value["model"]["vocab"]
            if not isinstance(vocab, dict | list):
                raise TypeError
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"{self.path}: not a Hugging Face tokenizer.json") from None
        tokens = value.get("added_tokens") or []
        added = {token["content"]: token["id"] for token in tokens}
        largest = max(vocab.values()) if isinstance(vocab, dict) else len(vocab) - 1
        known = {**vocab, **added} if isinstance(vocab, dict) else added
        names = (self.settings.end_of_text, self.settings.begin_of_text)
        value["added_tokens"] = [token for token in tokens if not token["special"]]
        value.update(post_processor=None, truncation=None, padding=None)
        return _Content(
            sha256=sha256,
            added=added,
            control=np.array(sorted(token["id"] for token in tokens if token["special"]), dtype=np.int64),
            named={name: int(known[name]) for name in names if name is not None and name in known},
            largest=max([largest, *added.values()]),
            plain=orjson.dumps(value).decode(),
        )

    def _read(self) -> tuple[bytes, str]:
        try:
            content = self.path.read_bytes()
        except OSError:
            raise UserError(
                f"{self.path}: no such tokenizer; download the base model's tokenizer.json, or correct "
                "model.tokenizer.path"
            ) from None
        found = hashlib.sha256(content).hexdigest()
        if self.settings.sha256 is not None and found != self.settings.sha256:
            raise UserError(
                f"{self.path}: its SHA-256 is {found}, model.tokenizer.sha256 asks for "
                f"{self.settings.sha256}; this is another tokenizer"
            )
        return content, found

    @property
    def sha256(self) -> str:
        """SHA-256 of the file.

        Raises:
            UserError: it is missing, or not the one that the recipe asks for.
        """
        return self._content.sha256

    @property
    def control_ids(self) -> np.ndarray:
        """Ids of control tokens (the special added ones), sorted, int64; no text may encode to one."""
        return self._content.control

    def _id_of(self, token: str, key: str) -> int:
        id_ = self._content.named.get(token)
        if id_ is None:
            near = [name for name in self._content.added if "text" in name or "s>" in name][:6]
            raise UserError(
                f"model.tokenizer.{key}: {self.path} has no token {token!r}"
                + (f"; it has {', '.join(near)}" if near else "")
            )
        return id_

    @property
    def end_of_text_id(self) -> int:
        """Id of the end of text, the token that closes every document.

        Raises:
            UserError: the tokenizer has no such token.
        """
        return self._id_of(self.settings.end_of_text, "end_of_text")

    @property
    def begin_of_text_id(self) -> int | None:
        """Id of the begin of text, the token that opens every document, if the recipe has one.

        Raises:
            UserError: the tokenizer has no such token.
        """
        token = self.settings.begin_of_text
        return None if token is None else self._id_of(token, "begin_of_text")

    @property
    def plain(self) -> str:
        """The tokenizer.json without special added tokens, post-processor, truncation and padding."""
        return self._content.plain

    def check(self) -> None:
        """Checks that the document boundaries exist and all ids fit the model.

        Raises:
            UserError: a token is missing, or the tokenizer has more ids than the model's embedding.
        """
        if self.begin_of_text_id == self.end_of_text_id:
            raise UserError(
                f"model.tokenizer: {self.settings.end_of_text!r} both opens and closes documents; leave "
                "begin_of_text out"
            )
        if self._content.largest >= self.vocab_size:
            raise UserError(
                f"{self.path}: its largest id is {self._content.largest}, but model.vocab_size is "
                f"{self.vocab_size}; tokenizer and model don't belong together"
            )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Loading a million objects that are all kept would trigger the garbage collector again and again: a
    quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.lru_cache(maxsize=2)
def tokenizer_of_process(settings: Tokenizer, vocab_size: int) -> TokenizerFile:
    """This process's tokenizer, read once."""
    return TokenizerFile(settings, vocab_size)
