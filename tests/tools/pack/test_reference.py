"""The reference that is made of a parsed file is the one that the library reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from emma.base.errors import UserError
from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import reference
from emma.tools.pack.reference import reference_of
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tokenizer_styles import STYLES, write_style

TEXT = "The river  rises.\n\nLa rivi\u00e8re na\u00eet <think> \u4e16\u754c</s> 12345 \U0001f600\tx"


def style(folder: Path, name: str) -> TokenizerFile:
    made = STYLES[name]
    write_style(folder, name)
    return TokenizerFile(Tokenizer(path=str(folder), begin_of_text=made.begin, end_of_text=made.end), 2000)


def check_same(value: dict[str, Any]) -> None:
    own, right = reference_of(value), Library.from_str(json.dumps(value))
    # Merges that the library writes are in order, so the vocabularies, merges, options and added tokens are equal.
    assert json.loads(own.to_str()) == json.loads(right.to_str())
    assert own.get_vocab(with_added_tokens=True) == right.get_vocab(with_added_tokens=True)
    spelled = TEXT + "".join(f" {token['content']}{token['content']}x" for token in value["added_tokens"])
    for text in (TEXT, spelled, spelled.upper()):
        assert (
            own.encode(text, add_special_tokens=False).ids == right.encode(text, add_special_tokens=False).ids
        )


def strings(value: dict[str, Any]) -> None:
    value["model"]["merges"] = [" ".join(merge) for merge in value["model"]["merges"]]


def beyond(value: dict[str, Any]) -> None:
    """Added tokens outside the vocabulary, special and ordinary ones in turn."""
    first = max(value["model"]["vocab"].values()) + 1
    known = {token["id"] for token in value["added_tokens"]}
    first = max({first, *(id_ + 1 for id_ in known)})
    for number in range(6):
        value["added_tokens"].append(
            {
                "id": first + number,
                "content": f"<|{number}|>",
                "single_word": number == 1,
                "lstrip": number == 2,
                "rstrip": number == 3,
                "normalized": number % 3 == 0,
                "special": number % 2 == 0,
            }
        )


def options(value: dict[str, Any]) -> None:
    value["model"] |= {"ignore_merges": True, "byte_fallback": True, "fuse_unk": True}


@pytest.mark.parametrize("change", [None, strings, beyond, options])
@pytest.mark.parametrize("name", STYLES)
def test_it_is_what_the_library_reads(
    name: str, change: Callable[[dict[str, Any]], None] | None, tmp_path: Path
) -> None:
    value = style(tmp_path, name).take_parsed()
    if change is not None:
        if value["model"]["type"] != "BPE":
            pytest.skip("only BPE is not read by the library itself")
        change(value)
    check_same(value)


def test_a_large_model_is_not_read_from_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = style(tmp_path, "llama3")
    value = file.take_parsed()
    read: list[dict[str, Any]] = []
    real = reference.orjson.dumps
    monkeypatch.setattr(reference.orjson, "dumps", lambda given: read.append(given) or real(given))
    reference_of(value)
    assert [given["model"]["vocab"] for given in read] == [{}]


def test_the_file_is_parsed_once_and_another_one_is_refused(tmp_path: Path) -> None:
    file = style(tmp_path, "qwen")
    file.check(keep_parsed=True)
    kept = vars(file)["_parsed"]
    assert file.take_parsed() is kept and "_parsed" not in vars(file)
    right = style(tmp_path / "other", "qwen")
    assert file.plain == right.plain and file.take_parsed() == right.take_parsed() == kept
    file = TokenizerFile(file.settings, 2000)
    file.check(keep_parsed=True)
    file.drop_parsed()
    file.path.write_text(file.path.read_text() + " ")
    with pytest.raises(UserError, match="was changed while it was in use"):
        _ = file.plain
