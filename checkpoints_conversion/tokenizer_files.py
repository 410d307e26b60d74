"""A tokenizer's files, which accompany the weights, and the ids of its special tokens. Needs no torch."""

from __future__ import annotations

import reprlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.checkpoints_conversion.config import TokenIds, read_settings
from emma.recipes.schema.model import Tokenizer
from emma.recipes.vocabulary import GROWTH_NAME

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

__all__ = [
    "check_tokenizer",
    "copy_tokenizer",
    "has_tokenizer",
    "load_engine",
    "named_tokens",
    "special_tokens",
    "tokenizer_files",
]

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    GROWTH_NAME,  # travels with the tokenizer that it is about
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_LARGEST = 512 << 20  # bytes of a tokenizer.json; published ones have up to some 35 MB
_shown = reprlib.repr


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files in a folder that may hold others."""
    return [folder / name for name in _FILES if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer that `tokenizers` can read."""
    return (folder / "tokenizer.json").is_file()


def copy_tokenizer(source: Path, destination: Path) -> list[Path]:
    """Copies the tokenizer's files into an existing folder; returns the copies."""
    return [Path(shutil.copy2(path, destination / path.name)) for path in tokenizer_files(source)]


def _text(value: Any) -> str | None:
    """A token in either form, its text or a record."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def load_engine(path: Path) -> Engine:
    """Reads a `tokenizer.json`; its expressions are compiled, nothing of it is executed.

    Raises:
        UserError: it is missing, or no tokenizer.
    """
    from tokenizers import Tokenizer as Engine

    if not path.is_file():
        raise UserError(f"{path}: no such file; copy the tokenizer's files too")
    if (size := path.stat().st_size) > _LARGEST:
        raise UserError(f"{path}: {size} bytes are no tokenizer; copy the file again")
    try:
        return Engine.from_str(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); copy the file again") from None
    except BaseException as error:
        # The library raises plain exceptions, and where its native code gives up, one that is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no tokenizer ({reason}); copy the file again") from None


def check_tokenizer(folder: Path, vocab_size: int) -> str:
    """Refuses a tokenizer that makes ids without a row in the model's embedding.

    Args:
        folder: may hold the tokenizer's files.
        vocab_size: the model's number of ids.

    Returns:
        `checked`, or why there was nothing to check.

    Raises:
        UserError: a file cannot be read, or an id is too large.
    """
    for path in (folder / name for name in _FILES):
        if (path.exists() or path.is_symlink()) and not path.is_file():
            raise UserError(f"{path}: not a file; copy the model again")
    for path in tokenizer_files(folder):
        if path.suffix == ".json" and path.name != "tokenizer.json":
            read_settings(path)
    if not has_tokenizer(folder):
        return "not checked: only tokenizer.json can be read" if tokenizer_files(folder) else "none"
    _check_ids(folder, load_engine(folder / "tokenizer.json"), vocab_size)
    return "checked"


def _check_ids(folder: Path, engine: Engine, vocab_size: int) -> None:
    path = folder / "tokenizer.json"
    vocabulary = engine.get_vocab(with_added_tokens=True)
    token = max(vocabulary, key=vocabulary.__getitem__, default=None)
    if token is not None and vocabulary[token] >= vocab_size:
        raise UserError(
            f"{path}: {len(vocabulary)} tokens, but the model has {vocab_size} ids, and {_shown(token)} is "
            f"{vocabulary[token]}; use the model's own tokenizer"
        )
    settings_file = folder / "tokenizer_config.json"
    settings = read_settings(settings_file) if settings_file.is_file() else {}
    added = settings.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise UserError(
            f"{settings_file}: `added_tokens_decoder` is {_shown(added)}, not an object; copy it again"
        )
    for key in added:
        if not (key.isascii() and key.isdigit() and int(key[:20]) < vocab_size):
            raise UserError(
                f"{settings_file}: `added_tokens_decoder` has the id {_shown(key)}, which is none from 0 to "
                f"{vocab_size - 1}; use the model's own tokenizer"
            )
    known = vocabulary.keys() | {_text(value) for value in added.values()}
    named = {key: text for key in _SPECIAL if (text := _text(settings.get(key))) is not None}
    new = list(dict.fromkeys(value for value in named.values() if value not in known))
    if new and max(vocabulary.values(), default=-1) + len(new) >= vocab_size:  # their ids follow the largest
        key = next(key for key, value in named.items() if value == new[-1])
        raise UserError(
            f"{settings_file}: `{key}` is {_shown(new[-1])}, which tokenizer.json lacks and for which the model's "
            f"{vocab_size} ids have no room; use the model's own tokenizer"
        )


@dataclass(frozen=True)
class NamedTokens:
    """A tokenizer's own special tokens, and its number of ids (the largest, plus one)."""

    tokens: TokenIds
    size: int


def named_tokens(folder: Path) -> NamedTokens:
    """The special tokens that `tokenizer_config.json` names.

    Raises:
        UserError: there is no tokenizer, it cannot be read, or it lacks one of these tokens.
    """
    engine = load_engine(folder / "tokenizer.json")
    settings_file = folder / "tokenizer_config.json"
    settings = read_settings(settings_file) if settings_file.is_file() else {}

    def token_id(key: str) -> int | None:
        text = _text(settings.get(key))
        found = None if text is None else engine.token_to_id(text)
        if text is not None and found is None:
            raise UserError(
                f"{settings_file}: `{key}` is {_shown(text)}, which tokenizer.json lacks; correct one"
            )
        return found

    begin, end, pad = (token_id(key) for key in ("bos_token", "eos_token", "pad_token"))
    size = 1 + max(engine.get_vocab(with_added_tokens=True).values(), default=-1)
    return NamedTokens(TokenIds(begin, () if end is None else (end,), pad), size)


def special_tokens(section: Tokenizer, folder: Path, vocab_size: int) -> TokenIds:
    """Ids of the tokens that begin and end a document.

    Args:
        section: the recipe's tokenizer; if it puts no token before a document, the tokenizer's own
            `bos_token` is used.
        folder: holds the tokenizer's files.
        vocab_size: the model's number of ids.

    Raises:
        UserError: the tokenizer is missing, differs from the recipe's, lacks a token, or has too many ids.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the recipe's model.tokenizer.path is relative to the working folder: "
            "go to that folder, or pass --tokenizer with the tokenizer's folder"
        )
    if section.sha256 is not None and (found := sha256_file(path)) != section.sha256:
        raise UserError(
            f"{path}: SHA-256 {found} is not the recipe's {section.sha256}; use the recipe's tokenizer"
        )
    engine = load_engine(path)
    _check_ids(folder, engine, vocab_size)
    settings_file = folder / "tokenizer_config.json"
    settings = read_settings(settings_file) if settings_file.is_file() else {}

    def token_id(token: str) -> int:
        found = engine.token_to_id(token)
        if found is None:
            raise UserError(
                f"{path}: has no token {token!r}, which the recipe's model.tokenizer names; correct one of the two"
            )
        return found

    begin = section.begin_of_text or _text(settings.get("bos_token"))
    pad = _text(settings.get("pad_token"))
    return TokenIds(
        begin=None if begin is None else token_id(begin),
        end=(token_id(section.end_of_text),),
        pad=None if pad is None else engine.token_to_id(pad),
    )
