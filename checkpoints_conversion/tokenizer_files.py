"""A tokenizer's files, which accompany the weights, and the ids of its special tokens. Needs no torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file
from emma.checkpoints_conversion.config import TokenIds
from emma.recipes.schema.model import Tokenizer

__all__ = ["copy_tokenizer", "has_tokenizer", "special_tokens", "tokenizer_files"]

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
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files in a folder that may hold others."""
    return [folder / name for name in _FILES if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer that `tokenizers` can read."""
    return (folder / "tokenizer.json").is_file()


def copy_tokenizer(source: Path, destination: Path) -> list[Path]:
    """Copies the tokenizer's files into an existing folder; returns the copies."""
    return [Path(shutil.copy2(path, destination / path.name)) for path in tokenizer_files(source)]


def _configured(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    return value.get("content") if isinstance(value, dict) else value


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
    from tokenizers import Tokenizer as Engine

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
    engine = Engine.from_file(str(path))
    if (ids := engine.get_vocab_size(with_added_tokens=True)) > vocab_size:
        raise UserError(
            f"{path}: {ids} tokens, but the model has {vocab_size}; use the model's own tokenizer"
        )
    settings_file = folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}

    def token_id(token: str) -> int:
        found = engine.token_to_id(token)
        if found is None:
            raise UserError(
                f"{path}: has no token {token!r}, which the recipe's model.tokenizer names; correct one of the two"
            )
        return found

    begin = section.begin_of_text or _configured(settings, "bos_token")
    pad = _configured(settings, "pad_token")
    return TokenIds(
        begin=None if begin is None else token_id(begin),
        end=(token_id(section.end_of_text),),
        pad=None if pad is None else engine.token_to_id(pad),
    )
