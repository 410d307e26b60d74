from __future__ import annotations

import fcntl
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from emma.base.claims import temporary_name
from emma.base.errors import CheckFailedError, UserError
from emma.base.manifest import Manifest
from emma.base.staging import WrittenMeanwhileError
from emma.tools.mix import build as build_module
from emma.tools.mix import catalogue as catalogue_module
from emma.tools.mix import fit
from emma.tools.mix import prepare as prepare_module
from emma.tools.mix.build import build_mix
from emma.tools.mix.catalogue import load_catalogue
from emma.tools.mix.layout import read_dataset_info, read_mix
from emma.tools.mix.prepare import expected_fingerprints, plan_mix
from emma.tools.mix.verify import verify_mix
from emma.tools.pack.store import open_component
from tests.tiny_mix import TinyMix, make_tiny_mix
from tests.tools.mix.conftest import MakeSettings


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, and where links lead."""
    return {
        str(path.relative_to(folder)): (
            str(path.resolve()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_more_shards_than_a_row_can_name_are_refused(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(samples=3)
    components = prepare_module.open_store(settings.store, sorted(settings.mix.components))
    few = sum(len(component.shards) for component in components[1:])
    shards = components[0].shards
    monkeypatch.setattr(prepare_module, "open_store", lambda *_: components)
    components[0].shards[:] = [shards[0]] * (65_536 - few)
    plan_mix(settings)
    components[0].shards.append(shards[0])
    with pytest.raises(
        UserError, match=r"65,537 shards; a mix may have at most 65,536\. .* data\.pack\.shard_mib"
    ):
        plan_mix(settings)


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("bucket_rows", [5, 1 << 23])
def test_samples_are_exact_and_verify_finds_nothing(
    make_settings: MakeSettings, packing: str, bucket_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "BUCKET_ROWS", bucket_rows)
    monkeypatch.setattr(fit, "PACKED_ROWS", 40 * bucket_rows)
    monkeypatch.setattr(catalogue_module, "PART_DOCUMENTS", bucket_rows)
    length = 64 if packing == "concatenate" else 400
    for samples in (1, 7, 40, 333):
        settings = make_settings(f"{packing}{samples}", samples, length, packing=packing)
        mix = build_mix(settings)
        assert (mix.samples, mix.tokens) == (samples, samples * length)
        info = read_dataset_info(mix.train)
        assert info.samples == samples and len(np.load(mix.train / "samples.npy")) == samples + 1
        if packing == "concatenate":
            assert info.tokens == samples * length + 1 and info.label_tokens == samples * length
            assert info.padding == 0
        found = verify_mix(settings.folder, fingerprint=expected_fingerprints(settings)[0])
        assert (found.faults, found.samples) == ([], samples)


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(make_settings: MakeSettings) -> None:
    one, two = make_settings("one"), make_settings("two")
    first, second = build_mix(one), build_mix(two)
    assert first.fingerprint == second.fingerprint
    mine, other = content(one.folder), content(two.folder)
    assert mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == ["mix.json"], "only the name differs"
    third = make_settings("three", seed=5)
    assert build_mix(third).fingerprint != first.fingerprint
    rows = [np.load(settings.folder / "train" / "rows.npy") for settings in (one, third)]
    assert not np.array_equal(rows[0][:20], rows[1][:20])


def test_every_source_meets_its_target_to_within_a_document(make_settings: MakeSettings) -> None:
    settings = make_settings(samples=200)
    mix = build_mix(settings)
    plan = plan_mix(settings)
    built = {(s.component, s.language): s for s in read_dataset_info(mix.train).sources}
    longest = max(
        int(load_catalogue(open_component(settings.store / name)).tokens.max()) for name in mix.components
    )
    for row in plan.sources:
        source = built[row.source.key]
        assert abs(source.tokens - row.target_tokens) <= longest
    table = pq.read_table(settings.folder / "plan.parquet").to_pylist()
    assert {(r["component"], r["language"]): r["built_tokens"] for r in table} == {
        key: source.tokens for key, source in built.items()
    }
    shares = Counter()
    for (component, _), source in built.items():
        shares[component] += source.tokens / (mix.tokens + 1)
    assert shares["monolingual"] == pytest.approx(0.6, abs=0.02)
    # `low` has twice the weight of `high`.
    epochs = {row["category"]: row["epochs"] for row in table if row["component"] == "monolingual"}
    assert epochs["low"] == pytest.approx(2 * epochs["high"], rel=0.01)


def test_documents_are_repeated_evenly_and_in_a_global_order(make_settings: MakeSettings) -> None:
    settings = make_settings(samples=10_000)
    build_mix(settings)
    rows = np.load(settings.folder / "train" / "rows.npy")
    times = Counter(zip(rows["shard"].tolist(), rows["offset"].tolist(), strict=True))
    info = read_dataset_info(settings.folder / "train")
    for number, source in enumerate(info.sources):
        mine = rows[rows["source"] == number]
        counts = [
            times[s, o] for s, o in set(zip(mine["shard"].tolist(), mine["offset"].tolist(), strict=True))
        ]
        assert max(counts) - min(counts) <= 1, source
    # Components are spread over the whole of training: each tenth holds about its share.
    parts = np.array_split(rows, 10)
    shares = [(part["tokens"][part["shard"] == 0].sum() / part["tokens"].sum()) for part in parts]
    assert max(shares) - min(shares) < 0.2


def test_building_reads_no_token(make_settings: MakeSettings, own_store: Path) -> None:
    right = build_mix(make_settings("right"))
    for path in own_store.rglob("*.bin"):
        size = path.stat().st_size
        path.unlink()
        with path.open("wb") as holes:
            holes.truncate(size)
    settings = make_settings("blind", store=own_store)
    assert build_mix(settings).fingerprint == right.fingerprint
    blind, seeing = (np.load(folder / "train" / "rows.npy") for folder in (settings.folder, right.folder))
    assert np.array_equal(blind, seeing)


def test_the_same_mix_is_kept_and_another_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings()
    first = build_mix(settings)
    before = (settings.folder / "mix.json").stat().st_mtime_ns
    assert build_mix(settings) == first
    assert (settings.folder / "mix.json").stat().st_mtime_ns == before
    other = make_settings(samples=41)
    with pytest.raises(UserError, match=r"holds another mix \(fingerprint .*, 40 samples; .*, 41 samples\)"):
        build_mix(other)
    assert build_mix(other, replace=True).samples == 41
    assert read_mix(settings.folder).samples == 41
    assert [path.name for path in settings.folder.parent.iterdir()] == ["mix"]


def test_the_same_mix_from_another_machine_is_as_good(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, which this one's locks don't reach, finishes first."""
    settings = make_settings()
    other = settings

    def late(*arguments: Any, **named: Any) -> Manifest:
        with monkeypatch.context() as patch:
            patch.setattr(build_module, "_manifest", manifest)
            patch.setattr(fcntl, "flock", lambda *_: None)
            build_mix(other, replace=True)
        return manifest(*arguments, **named)

    manifest = build_module._manifest
    monkeypatch.setattr(build_module, "_manifest", late)
    assert build_mix(settings) == read_mix(settings.folder)
    other = make_settings(samples=41)
    with pytest.raises(WrittenMeanwhileError, match="another process wrote it"):
        build_mix(make_settings(samples=42), replace=True)
    assert read_mix(settings.folder).samples == 41
    assert [path.name for path in settings.folder.parent.iterdir()] == ["mix"]


def test_a_killed_build_leaves_nothing_that_looks_finished(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "_manifest", dying)
    with pytest.raises(KeyboardInterrupt):
        build_mix(settings)
    assert not settings.folder.exists() and list(settings.folder.parent.iterdir()) == []
    # What a killed process left is cleared by the next one.
    leftover = settings.folder.with_name(temporary_name("mix"))
    leftover.mkdir()
    monkeypatch.undo()
    build_mix(settings)
    assert not leftover.exists()


def test_a_later_phase_leaves_out_what_an_earlier_one_consumed(make_settings: MakeSettings) -> None:
    first = make_settings("first", samples=30)
    build_mix(first)
    for consumed in (None, 11):
        entry = {"mix": str(first.folder), "samples": consumed}
        second = make_settings(f"second{consumed}", samples=60, exclude_consumed=[entry])
        mix = build_mix(second)
        samples = np.load(first.folder / "train" / "samples.npy")
        row, into = samples[30 if consumed is None else consumed]
        earlier = np.load(first.folder / "train" / "rows.npy")[: row + (into > 0)]
        later = np.load(mix.train / "rows.npy")
        places = [set(zip(r["shard"].tolist(), r["offset"].tolist(), strict=True)) for r in (earlier, later)]
        assert places[0] and not places[0] & places[1]
        assert verify_mix(second.folder, fingerprint=expected_fingerprints(second)[0]).faults == []
    held = [sum(row.source.tokens for row in plan_mix(settings).sources) for settings in (first, second)]
    assert held[1] < held[0]


def test_consumed_pieces_of_best_fit_samples_are_whole_documents_of_the_next(
    make_settings: MakeSettings,
) -> None:
    first = make_settings("first", samples=20, length=128, packing="best_fit")
    build_mix(first)
    second = make_settings("second", samples=10, exclude_consumed=[{"mix": str(first.folder), "samples": 20}])
    build_mix(second)
    taken = np.load(first.folder / "train" / "rows.npy")
    for row in np.load(second.folder / "train" / "rows.npy"):
        same = taken[taken["shard"] == row["shard"]]
        ends = row["offset"] + 2 * row["tokens"]
        assert not ((same["offset"] < ends) & (same["offset"] + 2 * same["tokens"] > row["offset"])).any()


def test_consumed_documents_of_another_store_are_refused(make_settings: MakeSettings, tmp_path: Path) -> None:
    other = make_tiny_mix(tmp_path / "other", samples=10, sequence_length=64, begin=False)
    settings = make_settings(exclude_consumed=[{"mix": str(other.mix)}])
    with pytest.raises(UserError, match="was built from another 'bilingual' than"):
        build_mix(settings)
    with pytest.raises(UserError, match="has 40 samples, so 50 cannot be consumed"):
        build_mix(make_settings(exclude_consumed=[{"mix": str(_tiny_mix(make_settings)), "samples": 50}]))


def _tiny_mix(make_settings: MakeSettings) -> Path:
    settings = make_settings("consumed")
    build_mix(settings)
    return settings.folder


def test_a_plan_that_fails_is_not_built(make_settings: MakeSettings, tiny: TinyMix) -> None:
    components = {
        name: {**value, "max_epochs": 1.0} for name, value in tiny.data.mix.model_dump()["components"].items()
    }
    settings = make_settings(samples=10_000, components=components)
    with pytest.raises(CheckFailedError, match="raise max_epochs"):
        build_mix(settings)
    assert not settings.folder.exists()


def test_a_store_of_another_tokenizer_is_refused(make_settings: MakeSettings) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="was packed with another tokenizer than the run's"):
        build_mix(replace(make_settings(), tokenizer_sha256="1" * 64))


def test_components_of_two_tokenizers_make_no_mix(
    make_settings: MakeSettings, tmp_path: Path, own_store: Path
) -> None:
    import shutil

    other = make_tiny_mix(tmp_path / "other", samples=10, sequence_length=64, begin=False)
    shutil.rmtree(own_store / "bilingual")
    shutil.copytree(other.store / "bilingual", own_store / "bilingual")
    with pytest.raises(UserError, match=r"monolingual: begin_id is 510, but None in .*bilingual"):
        build_mix(make_settings(store=own_store))


def test_best_fit_cuts_fewer_documents(make_settings: MakeSettings) -> None:
    infos = {}
    for packing in ("concatenate", "best_fit"):
        settings = make_settings(packing, samples=100, length=400, packing=packing)
        infos[packing] = read_dataset_info(build_mix(settings).train)
    longest = 401
    rows = np.load(infos["concatenate"].folder / "rows.npy")
    assert infos["concatenate"].cut_documents > 3 * infos["best_fit"].cut_documents
    assert infos["best_fit"].cut_documents == 0 or (rows["tokens"] > longest).any()
    assert 0 < infos["best_fit"].padding < 0.05
