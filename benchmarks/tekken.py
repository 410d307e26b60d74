"""Turns the tekken vocabulary of `mistral-common` (Apache-2.0, 131,072 tokens) into a Hugging Face tokenizer.json."""

from __future__ import annotations

import base64
import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.base.extras import install_command
from emma.base.files import write_json
from emma.tools.tokenizer.bpe import byte_characters

__all__ = ["rank_tokenizer", "tekken_tokenizer", "write_tekken"]


def _merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Every split of every token into two tokens, ordered by the ranks of the token and of its halves.

    A rank vocabulary doesn't record which merges made it. With one merge per token some tokens would be unreachable;
    all splits whose halves are tokens, in this order, give the same ids as merging by rank.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        if len(token) == 1:
            continue
        splits = []
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                splits.append((left, right, token[:cut], token[cut:]))
        merges.extend((left, right) for _, _, left, right in sorted(splits))
    return merges


def tekken_tokenizer() -> dict[str, Any]:
    """Content of a tokenizer.json: `<s>` is id 1, `</s>` is id 2, and ids 0 to 999 are control tokens.

    Raises:
        UserError: `mistral-common` is not installed.
    """
    if importlib.util.find_spec("mistral_common") is None:
        raise UserError(
            f"mistral-common has the vocabulary and is not installed. Fix: {install_command('mistral_common')}"
        )
    source = resources.files("mistral_common") / "data" / "tekken_240911.json"
    tekken = orjson.loads(source.read_bytes())
    config = tekken["config"]
    special = config["default_num_special_tokens"]
    tokens = [
        base64.b64decode(entry["token_bytes"])
        for entry in tekken["vocab"][: config["default_vocab_size"] - special]
    ]
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    control = [names.get(id_, f"<SPECIAL_{id_}>") for id_ in range(special)]
    return rank_tokenizer(tokens, config["pattern"], control, control_first=True)


def rank_tokenizer(
    tokens: list[bytes], pattern: str, control: list[str], *, control_first: bool
) -> dict[str, Any]:
    """Content of a tokenizer.json of a vocabulary by rank.

    Args:
        tokens: by rank; all 256 bytes are among them.
        pattern: splits text, in the syntax of Rust's `regex`.
        control: control tokens.
        control_first: whether they have the first ids and stand in the vocabulary (Mistral's way), or follow it (Llama's).
    """
    table = byte_characters()

    def text(token: bytes) -> str:
        return "".join(table[byte] for byte in token)

    first_control, first = (0, len(control)) if control_first else (len(tokens), 0)
    ids = {name: first_control + place for place, name in enumerate(control)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id_,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, id_ in ids.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": (ids if control_first else {})
            | {text(token): first + rank for rank, token in enumerate(tokens)},
            "merges": [[text(left), text(right)] for left, right in _merges(tokens)],
        },
    }


def write_tekken(folder: Path) -> Path:
    """Writes `folder/tokenizer.json` unless it exists; returns the folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        write_json(path, tekken_tokenizer())
    return folder
