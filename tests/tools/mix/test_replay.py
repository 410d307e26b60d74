"""The mix of a phase that replays: its shares, its documents, and the proof that none of them was consumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.base.manifest import FileRecord
from emma.recipes.schema.guard import Replay
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings, plan_mix
from emma.tools.mix.replay import Replayed, members, parts_of, replay_shares, replayed_mix
from emma.tools.mix.verify import verify_mix
from tests.tiny_mix import TinyMix
from tests.tools.mix.conftest import MakeSettings

FIRST, CONSUMED, REST = 60, 20, 40


def once(tiny: TinyMix, cap: float = 1.0) -> dict[str, dict[str, object]]:
    """The tiny mix's components with a cap: its own allows any number of epochs."""
    components = tiny.data.mix.model_dump()["components"]
    return {name: {**value, "max_epochs": cap} for name, value in components.items()}


@pytest.fixture
def first(make_settings: MakeSettings, tiny: TinyMix) -> MixSettings:
    settings = make_settings("first", samples=FIRST, components=once(tiny))
    build_mix(settings)
    return settings


def phase(
    first: MixSettings, parts: dict[str, float], *, again: bool = False
) -> tuple[MixSettings, Replayed]:
    settings = replace(first, name="phase", folder=first.folder.with_name("phase"), samples=REST)
    mix, numbers = replayed_mix(settings, first.folder, CONSUMED, parts, again=again)
    return replace(settings, mix=mix), numbers


def share_of(settings: MixSettings, group: str) -> float:
    """Part of the planned tokens that a validation group's sources have."""
    plan = plan_mix(settings)
    inside = [
        row.target_tokens
        for row in plan.sources
        if members(group, row.source.component, row.source.language, row.source.category)
    ]
    return sum(inside) / plan.planned_tokens


@pytest.mark.parametrize(
    "parts",
    [
        {"language-swh_Latn": 0.05},
        {"component-bilingual": 0.25},
        {"category-monolingual-high": 0.1, "language-fra_Latn": 0.05},
    ],
)
def test_shares_are_those_of_the_rule_to_the_token(first: MixSettings, parts: dict[str, float]) -> None:
    """(1 − Σ f) of the old share, and f of each group divided as its sources were."""
    settings, numbers = phase(first, parts)
    rows = pq.read_table(first.folder / "plan.parquet").to_pylist()
    total = sum(row["tokens"] for row in rows)
    plan = plan_mix(settings)
    planned = {row.source.key: row.target_tokens for row in plan.sources}
    assert not numbers.short and plan.planned_tokens == plan.tokens
    for row in rows:
        key, old = (row["component"], row["language"]), row["tokens"] / total
        wanted = (1 - sum(parts.values())) * old
        for group, part in parts.items():
            inside = [r for r in rows if members(group, r["component"], r["language"], r["category"])]
            if row in inside:
                wanted += part * row["tokens"] / sum(r["tokens"] for r in inside)
        assert planned[key] == pytest.approx(wanted * plan.tokens, abs=1.5), key
    for group, part in parts.items():
        assert share_of(settings, group) >= part + (1 - sum(parts.values())) * share_of(first, group) - 2e-3


def test_nothing_consumed_is_read_and_verify_proves_it(first: MixSettings) -> None:
    settings, numbers = phase(first, {"language-swh_Latn": 0.25})
    mix = build_mix(settings)
    starts, rows = (np.load(first.folder / "train" / f"{name}.npy") for name in ("samples", "rows"))
    row, into = starts[CONSUMED]
    consumed, read = rows[: row + (into > 0)], np.load(mix.train / "rows.npy")
    places = [set(zip(r["shard"].tolist(), r["offset"].tolist(), strict=True)) for r in (consumed, read)]
    assert places[0] and places[1] and not places[0] & places[1]
    found = verify_mix(settings.folder)
    assert found.faults == []
    assert any(
        f"hold {len(places[0])} documents; none of the {len(places[1])}" in note.replace(" which", "")
        for note in found.notes
    ), found.notes
    # Epochs over both parts together, counted from what was built.
    for source in numbers.sources:
        held = source.store_tokens
        codes = [
            number
            for number, each in enumerate(
                json.loads((first.folder / "train/dataset.json").read_text())["sources"]
            )
            if (each["component"], each["language"]) == (source.component, source.language)
        ]
        assert source.consumed_tokens == consumed["tokens"][np.isin(consumed["source"], codes)].sum()
        assert source.epochs == pytest.approx((source.consumed_tokens + source.tokens) / held)
        assert source.unread_tokens == held - source.consumed_tokens  # at most one epoch so far


def test_validation_stays_the_same(first: MixSettings) -> None:
    """The guard compares document by document with what was measured before."""
    mix = build_mix(phase(first, {"language-swh_Latn": 0.25})[0])
    for group in mix.groups:
        before, after = (folder / "validation" / group / "rows.npy" for folder in (first.folder, mix.folder))
        assert before.read_bytes() == after.read_bytes()


def plant(folder: Path, first: Path) -> None:
    """Puts the first document that was consumed in place of the phase's first one."""
    path = folder / "train" / "rows.npy"
    rows = np.load(path)
    rows[0] = np.load(first / "train" / "rows.npy")[0]
    np.save(path, rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in manifest["outputs"]:
        if record["path"] == "train/rows.npy":
            record.update(vars(FileRecord.of(path, folder)))
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))


def test_verify_finds_a_consumed_document_and_another_earlier_mix(first: MixSettings) -> None:
    settings, _ = phase(first, {"language-swh_Latn": 0.25})
    build_mix(settings)
    plant(settings.folder, first.folder)
    faults = verify_mix(settings.folder).faults
    assert any("reads 1 documents of " in fault and "were consumed of" in fault for fault in faults), faults
    shutil.rmtree(first.folder)
    assert any(
        "what was consumed cannot be compared" in fault for fault in verify_mix(settings.folder).faults
    )
    build_mix(replace(first, mix=first.mix.model_copy(update={"seed": 5})))
    assert any("another mix has taken its place" in fault for fault in verify_mix(settings.folder).faults)


def test_caps_are_kept_and_what_is_short_is_named(make_settings: MakeSettings, tiny: TinyMix) -> None:
    """Half of Swahili may be read in all, which is less than is asked for: so much less is planned as was consumed."""
    components = once(tiny)
    components["monolingual"]["max_epochs_of"] = {"swh_Latn": 0.5}
    first = make_settings("first", samples=FIRST, components=components)
    build_mix(first)
    settings, numbers = phase(first, {"language-swh_Latn": 0.9})
    assert "monolingual/swh_Latn" in numbers.short
    source = next(s for s in numbers.sources if (s.component, s.language) == ("monolingual", "swh_Latn"))
    assert source.consumed_tokens + source.tokens == pytest.approx(0.5 * source.store_tokens, abs=2)
    assert source.epochs == pytest.approx(0.5, abs=0.01)
    assert plan_mix(settings).planned_tokens == plan_mix(settings).tokens
    told = {(s["component"], s["language"]) for s in numbers.to_dict()["sources"]}
    assert ("monolingual", "swh_Latn") in told and numbers.notes


def test_a_budget_that_is_not_there_is_refused(first: MixSettings) -> None:
    settings = replace(first, name="phase", folder=first.folder.with_name("phase"), samples=10_000)
    with pytest.raises(CheckFailedError, match=r"holds [\d,]+ tokens at its caps, but the budget is"):
        replayed_mix(settings, first.folder, CONSUMED, {"language-swh_Latn": 0.05}, again=False)
    with pytest.raises(UserError, match="language-xyz: the mix reads no text of this group"):
        phase(first, {"language-xyz": 0.05})


def test_reading_again_keeps_the_caps_of_both_parts_together(
    make_settings: MakeSettings, tiny: TinyMix
) -> None:
    first = make_settings("first", samples=FIRST, components=once(tiny, 2.0))
    build_mix(first)
    settings, numbers = phase(first, {"language-swh_Latn": 0.25}, again=True)
    assert not settings.mix.exclude_consumed
    for row in plan_mix(settings).sources:
        (source,) = (s for s in numbers.sources if (s.component, s.language) == row.source.key)
        assert row.cap_tokens + source.consumed_tokens <= 2 * source.store_tokens + 1
        assert row.cap_tokens + source.consumed_tokens >= 2 * source.store_tokens - 1


def test_a_weak_shift_replays_5_percent_and_a_strong_one_25() -> None:
    rule = Replay()
    assert parts_of({"a": (0.019, 0.01)}, rule) == {"a": 0.05}
    assert parts_of({"a": (0.02, 0.01), "b": (0.011, 0.01)}, rule) == {"a": 0.25, "b": 0.05}
    assert parts_of({"a": (None, 0.01)}, rule) == {"a": 0.25}
    four = parts_of({name: (1.0, 0.01) for name in "abcd"}, rule)
    assert sum(four.values()) == pytest.approx(0.5) and len(set(four.values())) == 1


def test_shares_sum_to_one() -> None:
    rows = [
        {"component": "c", "language": name, "category": None, "tokens": tokens}
        for name, tokens in (("x", 10), ("y", 30), ("z", 0))
    ]
    before, after = replay_shares(rows, {"language-y": 0.25, "component-c": 0.05})
    assert sum(before.values()) == pytest.approx(1) and sum(after.values()) == pytest.approx(1)
    assert after["c", "y"] == pytest.approx(0.7 * 0.75 + 0.25 + 0.05 * 0.75) and after["c", "z"] == 0
