"""A vocabulary by rank becomes a tokenizer.json that merges by rank."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.llama3 import CONTROL, PATTERN, write_llama3
from emma.base.errors import UserError
from emma.tools.tokenizer.bpe import open_tokenizer

_TOKENS = [bytes([byte]) for byte in range(256)] + [b"bc", b" a", b"ab", b"abc", b" abc", "ไ".encode()]


def _ranks(path: Path, tokens: list[bytes]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _by_rank(word: bytes) -> list[int]:
    """What tiktoken does with one pre-token: a known one whole, else the pair of the lowest rank first."""
    ranks = {token: rank for rank, token in enumerate(_TOKENS)}
    if word in ranks:
        return [ranks[word]]
    parts = [bytes([byte]) for byte in word]
    while pairs := [(ranks[a + b], place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


def test_ids_are_those_of_merging_by_rank(tmp_path: Path) -> None:
    folder = write_llama3(_ranks(tmp_path / "ranks", _TOKENS), tmp_path / "out")
    file = open_tokenizer(folder)
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for word in ("abc", " abc", "abcabc", "bcabcab", "ไabc", "ไไ"):
        assert own.encode(word).ids == _by_rank(word.encode()), word
    # "ไ" has no two halves that are tokens: only the rule that takes whole pre-tokens reaches it.
    assert own.encode("ไ").ids == [261]
    assert file.ids["<|begin_of_text|>"] == len(_TOKENS)
    assert max(file.ids.values()) == len(_TOKENS) + len(CONTROL) - 1
    value = json.loads((folder / "tokenizer.json").read_text())
    assert "<|begin_of_text|>" not in value["model"]["vocab"]  # as in the published file
    assert value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == PATTERN
    assert len(CONTROL) == len(set(CONTROL)) == 256 and CONTROL[9] == "<|eot_id|>"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    for content, message in (("a b c", "no list of tokens"), ("YQ== 1", "line 1 has the rank 1")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            write_llama3(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
