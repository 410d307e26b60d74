"""Documents that are encoded twice: how many, which, and what follows when one has other ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from emma.base.errors import UserError
from emma.tools.pack import certificate, engine, gate, inputs, proof, run
from emma.tools.pack.encoded import Encoded
from emma.tools.pack.engine import forget_engine
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.probes import probes
from emma.tools.pack.recheck import recheck_component
from emma.tools.pack.run import pack_store
from emma.tools.pack.sample import Draw, chance_of_finding, share_needed
from emma.tools.pack.store import open_component
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.folders import content
from tests.tiny_text import documents
from tests.tools.pack.conftest import MakeSettings


@pytest.mark.parametrize("count", [1, 7, 999, 1000, 1001, 5_000, 20_000, 10**6, 10**9])
def test_a_fault_in_one_of_a_thousand_documents_is_found(count: int) -> None:
    share = share_needed(count, 0.001)
    faulty = -(-count // 1000)
    assert share == 1 or (1 - share) ** faulty < 0.001
    assert chance_of_finding(share, count, 0.001) > 0.999
    assert share * count < 8000, "no more than it takes"
    assert (count > 1000) or share == 1


def test_a_draw_does_not_depend_on_the_batches() -> None:
    whole = Draw(3, 5, 0.4).next(1000)
    parts = Draw(3, 5, 0.4)
    assert np.array_equal(np.concatenate([parts.next(n) for n in (1, 0, 500, 499)]), whole)
    assert 300 < whole.sum() < 500
    rest = Draw(3, 5, 1.0, low=0.4).next(1000)
    assert np.array_equal(~whole, rest)
    assert not np.array_equal(whole, Draw(4, 5, 0.4).next(1000))
    assert not np.array_equal(whole, Draw(3, 6, 0.4).next(1000))


class LateFault(engine._ByText):
    """A fast engine that is wrong about a text that comes after what the gate looks at."""

    wrong, found = "zebra crossing", "zebra"

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self.inner = engine._Reference(tokenizer)

    def encode(self, values: pa.Array) -> Encoded:
        changed = [value.replace(self.wrong, self.found) for value in values.to_pylist()]
        return self.inner.encode(pa.array(changed, pa.large_string()))


@pytest.fixture
def late_fault(monkeypatch: pytest.MonkeyPatch, planted: None) -> Iterator[None]:
    monkeypatch.setattr(certificate, "probes", lambda entries, added: list(probes(entries, added))[-200:])
    monkeypatch.setitem(engine._CLASSES, "fastokens", LateFault)
    forget_engine("fastokens")
    yield
    forget_engine("fastokens")


def write_documents(folder: Path, count: int, wrong: set[int]) -> Path:
    """Documents of 0.6 KiB, so that the gate looks at some fifteen; the late engine is wrong about some later ones."""
    path = folder / "eng_Latn" / "train.jsonl"
    path.parent.mkdir(parents=True)
    filler = " ".join(documents("eng_Latn", 60))[:600]
    rows = [
        {"id": str(n), "text": f"{n} {filler} {'zebra crossing' if n in wrong else 'end'}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("late_fault")
@pytest.mark.parametrize("wrong", [set(range(200, 400)), {333}], ids=["200 of 400", "one"])
def test_an_engine_wrong_on_later_text_leaves_nothing_in_the_store(
    wrong: set[int], make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 30_000)
    path = write_documents(tmp_path / "raw", 400, wrong)
    settings = make_settings([path], engine="fastokens")
    report = pack_store(settings, workers=1)["web"]
    right = make_settings([path], "right", engine="tokenizers")
    pack_store(right, workers=1)
    assert content(settings.store / "web") == content(right.store / "web")
    assert report["engine"] == "tokenizers"
    assert f"document {min(wrong)} other ids" in report["engines_passed_over"]["fastokens"]
    assert "also what fastokens has encoded" in capsys.readouterr().err
    assert len(open_component(settings.store / "web").manifest.extra["units"]) > 5


@pytest.mark.usefixtures("late_fault")
def test_array_tasks_pack_again_what_a_refused_engine_packed(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_SMALLEST_UNIT", 30_000)
    path = write_documents(tmp_path / "raw", 400, {80})
    settings = make_settings([path], engine="fastokens")
    # The fault is in the second unit: what the first task packed before must be packed again.
    first = pack_store(settings, workers=1, shard=(0, 2))["web"]
    assert first["units"] > 6 and first["units_missing"] == first["units"] // 2
    second = pack_store(settings, workers=1, shard=(1, 2))["web"]
    assert second["units_missing"] == (second["units"] + 1) // 2
    with pytest.raises(UserError, match="work units are not packed yet"):
        pack_store(settings, workers=1, finish_only=True)
    pack_store(settings, workers=1)
    right = make_settings([path], "right", engine="tokenizers")
    pack_store(right, workers=1)
    assert content(settings.store / "web") == content(right.store / "web")


@pytest.mark.usefixtures("late_fault")
def test_a_share_that_was_too_small_is_made_up_for(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_COUNTED", 1e9)
    path = write_documents(tmp_path / "raw", 60, {40})
    settings = make_settings([path], engine="fastokens")
    report = pack_store(settings, workers=1)["web"]
    assert report["engine"] == "tokenizers"
    right = make_settings([path], "right", engine="tokenizers")
    pack_store(right, workers=1)
    assert content(settings.store / "web") == content(right.store / "web")
    fine = make_settings([write_documents(tmp_path / "fine", 60, set())], "fine", engine="fastokens")
    twice = pack_store(fine, workers=1)["web"]["encoded_twice"]
    assert (twice["documents"], twice["of"], twice["share"], twice["certainty"]) == (60, 60, 1.0, 1.0)


@pytest.mark.usefixtures("late_fault")
def test_as_many_ids_as_the_reference_gives_are_not_enough(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each word is encoded with the space before it, so the same ids come in another order.
    monkeypatch.setattr(LateFault, "found", "crossing zebra")
    settings = make_settings([write_documents(tmp_path / "raw", 60, {40})], engine="fastokens")
    report = pack_store(settings, workers=1)["web"]
    assert "document 40 other ids" in report["engines_passed_over"]["fastokens"]


def unproven(settings: PackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs without encoding anything twice, as a version without that would."""
    with monkeypatch.context() as patch:
        for module in (run, proof):
            patch.setattr(module, "share_needed", lambda documents, fault_share: 0.0)
        pack_store(settings, workers=1)


@pytest.mark.usefixtures("late_fault")
def test_verify_finds_wrong_ids_and_says_what_it_compared(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_documents(tmp_path / "raw", 60, {40})
    settings = make_settings([path], engine="fastokens")
    unproven(settings, monkeypatch)
    faults, seen = recheck_component(settings, "web", 1, 1)
    assert len(faults) == 1 and "document 40: its tokens are not those" in faults[0]
    assert seen == {"encoded_again": 60, "of": 60, "seed": 1}
    path.write_text(path.read_text() + '{"text": "more"}\n')
    faults, seen = recheck_component(settings, "web", 1, 1)
    assert not faults and "the input was changed" in seen["not_encoded_again"]


@pytest.mark.parametrize("options", [{}, {"max_tokens": 100}, {"max_tokens": 100, "long_documents": "drop"}])
def test_verify_finds_documents_that_were_cut_or_share_an_id(
    options: dict[str, object], make_settings: MakeSettings, tmp_path: Path
) -> None:
    path = tmp_path / "raw" / "eng_Latn" / "a.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"id": str(n // 2), "text": f"{n} " + "word " * (n * 7)} for n in range(60)] + [
        {"id": "x", "text": "a"}
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = make_settings([path], **options)
    pack_store(settings, workers=1)
    faults, seen = recheck_component(settings, "web", 9, 1)
    assert faults == [] and seen["encoded_again"] >= 60
