"""The reference, Hugging Face `tokenizers`, made of a tokenizer.json that is parsed already.

The library takes twice as long to read a large BPE model from JSON as to be given its vocabulary and merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import orjson

from emma.base.garbage import no_garbage_collection

__all__ = ["reference_of"]

_BPE = {
    "vocab",
    "merges",
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
}
_ADDED = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}


@no_garbage_collection()
def reference_of(value: Mapping[str, Any]) -> Any:
    """A `tokenizers.Tokenizer`, the one that the library makes of the same content as JSON.

    Args:
        value: a parsed tokenizer.json.

    Raises:
        Exception: the library refuses the content.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    model, added = value["model"], value.get("added_tokens") or []
    merges = _pairs(model)
    if merges is None or any(set(token) != _ADDED for token in added):
        return Tokenizer.from_str(orjson.dumps(value).decode())
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    own = Tokenizer.from_str(orjson.dumps({**value, "added_tokens": [], "model": empty}).decode())
    options = {name: given for name in _BPE & set(model) if (given := model[name]) is not None}
    own.model = BPE(**{**options, "merges": merges})
    # The library numbers tokens that the vocabulary lacks in the order in which it gets them.
    for special, tokens in groupby(added, key=lambda token: token["special"]):
        add = own.add_special_tokens if special else own.add_tokens
        add([AddedToken(**{name: token[name] for name in _ADDED - {"id"}}) for token in tokens])
    return own


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """A BPE model's merges; None if the model is of another kind, or has keys that are not known here."""
    if model.get("type") != "BPE" or set(model) - {"type"} - _BPE or not isinstance(model.get("vocab"), dict):
        return None
    merges = model.get("merges")
    if not isinstance(merges, list):
        return None
    # Older files have them as "left right", which `tokenizers` splits itself.
    if not all(map(list.__instancecheck__, merges)):
        return None
    return list(map(tuple, merges))
