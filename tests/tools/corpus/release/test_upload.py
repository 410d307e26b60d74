"""A corpus becomes a dataset repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from tests.tools.hub.hub_server import Hub
from tests.tools.hub.uploading import held, local, upload


def test_every_byte_arrives_through_interruptions(
    released_corpus: Path, hub: Hub, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emma.tools.hub.asking._WAIT_SECONDS", 0.01)
    hub.drops = 5
    code, text = upload(released_corpus)
    assert (code, hub.drops) == (0, 0), text
    assert hub.repositories["team/model"].kind == "dataset"
    assert hub.repositories["team/model"].private
    assert held(hub) == local(released_corpus)
    assert not any(request.startswith("POST /api/models") for request in hub.requests)

    files = hub.repositories["team/model"].branches["main"]
    name = next(name for name in files if name.endswith(".parquet"))
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    code, text = upload(released_corpus, "--check-only")
    assert code == 1
    assert f"{name} has different content there" in text


def test_card_passes_the_clients_validation(
    released_corpus: Path, corpus_release: Path, address: str
) -> None:
    DatasetCard.load(released_corpus / "README.md").validate()
    path = corpus_release / "README.md"
    path.write_text(
        path.read_text(encoding="utf-8").replace("config_name: monolingual\n", "config_name: code\n")
    )
    with pytest.raises(ValueError, match="config_name"):
        DatasetCard.load(path).validate()
