"""Which process packs which units."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from emma.tools.pack import inputs
from emma.tools.pack.encoder import Encoder
from emma.tools.pack.run import pack_store
from emma.tools.pack.schedule import _lanes
from emma.tools.pack.store import open_component
from tests.tiny_text import SENTENCES
from tests.tools.pack.conftest import MakeSettings


@pytest.mark.parametrize(("units", "count"), [(1, 1), (7, 3), (2, 5), (40, 2), (0, 2)])
def test_neighbours_go_to_one_process(units: int, count: int) -> None:
    work = [(cast(Any, "plan"), cast(Any, SimpleNamespace(index=n, bytes=8))) for n in range(units)]
    lanes = _lanes(work, count)
    assert [unit.index for lane in lanes for _, unit in lane] == list(range(units))
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1


def test_parts_have_about_as_many_bytes() -> None:
    work = [
        (cast(Any, "plan"), cast(Any, SimpleNamespace(index=n, bytes=size)))
        for n, size in enumerate([90, 10, 10, 90])
    ]
    assert [[unit.index for _, unit in lane] for lane in _lanes(work, 2)] == [[0, 1], [2, 3]]


def test_a_language_that_turns_up_late_is_compared_once(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    pytest.importorskip("fastokens")
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 4_000)
    rows = [{"language": "eng_Latn", "text": " ".join(SENTENCES["eng_Latn"])} for _ in range(20)]
    rows += [
        {"language": language, "text": text}
        for n in range(30)
        for language in ("fra_Latn", "eng_Latn")
        for text in SENTENCES[language]
    ]
    path = tmp_path / "raw" / "mixed.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n, row in enumerate(rows)))
    gated: Counter[str] = Counter()
    gate = Encoder.gate

    def counted(self: Encoder, values: pa.Array, language: str) -> bool:
        gated[language] += 1
        return gate(self, values, language)

    monkeypatch.setattr(Encoder, "gate", counted)
    settings = make_settings([path], engine="gigatoken")
    pack_store(settings, workers=1)
    assert len(open_component(settings.store / "web").manifest.extra["units"]) > 5
    assert gated == {"fra_Latn": 1}, "eng_Latn is in the plan"
    shutil.rmtree(settings.store)
    pack_store(make_settings([path], engine="fastokens"), workers=1)
    assert gated["fra_Latn"] == 2, "another engine"
