"""Which rows of the embeddings mean the same tokens in all models of a merge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.checkpoints_conversion.tokenizer_files import has_tokenizer, load_engine

__all__ = ["SharedRows", "Vocabulary", "shared_rows"]

_TEXT = ("normalizer", "pre_tokenizer")  # what is done to text before it is looked up


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one model.

    Args:
        label: the model's name.
        rows: rows of its embedding.
        folder: holds its tokenizer; None if it has none that can be read.
    """

    label: str
    rows: int
    folder: Path | None

    @property
    def known(self) -> bool:
        return self.folder is not None and has_tokenizer(self.folder)

    @property
    def file(self) -> Path:
        return Path(self.folder or "") / "tokenizer.json"

    @cached_property
    def sha256(self) -> str:
        return sha256_file(self.file) if self.known else ""

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token → id."""
        return load_engine(self.file).get_vocab(with_added_tokens=True)

    @cached_property
    def size(self) -> int:
        """Number of ids: the largest plus one."""
        return 1 + max(self.ids.values(), default=-1)

    @cached_property
    def rules(self) -> dict[str, Any]:
        """How text becomes these tokens."""
        content = json.loads(self.file.read_text(encoding="utf-8"))
        return {**{key: content.get(key) for key in _TEXT}, "merges": content["model"].get("merges")}


@dataclass(frozen=True)
class SharedRows:
    """Rows of the result's embedding.

    Attributes:
        rows: how many it has.
        shared: of these, from the first, how many mean the same token in all models.
        grown: numbers of the models that have the others.
        unchecked: names of models without a tokenizer, taken to have the others'.
    """

    rows: int
    shared: int
    grown: tuple[int, ...]
    unchecked: tuple[str, ...]


def shared_rows(models: Sequence[Vocabulary]) -> SharedRows:
    """Compares the models' tokenizers.

    A tokenizer may have more tokens than another if it gives all of the other's the same ids, and its own follow them.

    Raises:
        UserError: two tokenizers give one id to different tokens, or nothing says what the surplus rows of a model are.
    """
    known = [model for model in models if model.known]
    unchecked = tuple(model.label for model in models if not model.known)
    if not known:
        if len({model.rows for model in models}) > 1:
            counts = ", ".join(f"{model.label} {model.rows}" for model in models)
            raise UserError(
                f"the models' embeddings have different numbers of rows ({counts}), and none has a tokenizer.json that says "
                "what these are; copy the tokenizers' files into the models' folders"
            )
        return SharedRows(models[0].rows, models[0].rows, tuple(range(len(models))), unchecked)
    largest = max(known, key=lambda model: (model.size, model.rows))
    shared = largest.rows
    older: dict[str, Vocabulary] = {}
    for model in known:
        if model.size < largest.size:
            _check_older(model, largest)
            older[model.label] = model
            shared = min(shared, model.size)
        else:
            _check_same(model, largest)
            shared = min(shared, model.rows)
    if len({model.size for model in older.values()}) > 1:
        sizes = ", ".join(f"{model.label} {model.size}" for model in known)
        raise UserError(
            f"three vocabularies of different sizes cannot be merged at once ({sizes} tokens); merge the models of the smaller "
            "two first"
        )
    grown = tuple(i for i, m in enumerate(models) if m.label not in older and m.rows == largest.rows)
    for number, model in enumerate(models):
        if not model.known and number not in grown:
            raise UserError(
                f"{model.label}: its embedding has {model.rows} rows, that of {largest.label} {largest.rows}, and it has no "
                "tokenizer.json that says what they are; copy its tokenizer's files into its folder"
            )
    return SharedRows(largest.rows, shared, grown, unchecked)


def _check_same(one: Vocabulary, other: Vocabulary) -> None:
    if one.sha256 == other.sha256:
        return
    _check_ids(one, other)
    for key, value in one.rules.items():
        if value != other.rules[key]:
            raise UserError(
                f"{one.file} and {other.file}: same tokens, but `{key}` differs, so the same text gets different ids; these "
                "models cannot be merged"
            )


def _check_older(old: Vocabulary, new: Vocabulary) -> None:
    _check_ids(old, new)
    if early := sorted((i, token) for token, i in new.ids.items() if token not in old.ids and i < old.size):
        number, token = early[0]
        raise UserError(
            f"{new.file}: gives {token!r} the id {number}, which lies among those of {old.file}, where it is no token; these "
            "vocabularies don't extend each other"
        )


def _check_ids(old: Vocabulary, new: Vocabulary) -> None:
    """All tokens of `old` have the same ids in `new`."""
    wrong = [(number, token) for token, number in old.ids.items() if new.ids.get(token) != number]
    if wrong:
        number, token = min(wrong)
        found = new.ids.get(token)
        raise UserError(
            f"{old.file} and {new.file} are different tokenizers: {token!r} is {number} in the first and "
            f"{'no token' if found is None else found} in the second ({len(wrong)} such tokens); merge models of one "
            "vocabulary, or of one and its extension"
        )
