from __future__ import annotations

import json
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.pack.run import pack_store
from emma.tools.pack.texts import store_batches
from tests.tiny_text import documents
from tests.tools.pack.conftest import MakeSettings


def test_packed_documents_are_text_again(tmp_path: Path, make_settings: MakeSettings) -> None:
    texts = {language: documents(language, 12) for language in ("eng_Latn", "jpn_Jpan")}
    files = []
    for language, found in texts.items():
        files.append(tmp_path / "raw" / language / "train.jsonl")
        files[-1].parent.mkdir(parents=True)
        rows = [
            {"id": f"{language}/{i}", "text": t, "language": language, "source": "s"}
            for i, t in enumerate(found)
        ]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = make_settings(files)
    pack_store(settings)
    batches = list(store_batches(settings.store, ["web"], settings.tokenizer.path))
    read = {
        (batch.language, identifier): text
        for batch in batches
        for identifier, text in zip(batch.ids, batch.sides[0], strict=True)
    }
    assert read == {
        (language, f"{language}/{i}"): text
        for language, found in texts.items()
        for i, text in enumerate(found)
    }
    assert {batch.language: batch.scripts for batch in batches} == {
        "eng_Latn": [["Latn"]],
        "jpn_Jpan": [["Jpan"]],
    }
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    with pytest.raises(UserError, match="not the tokenizer that"):
        next(store_batches(settings.store, ["web"], other))
