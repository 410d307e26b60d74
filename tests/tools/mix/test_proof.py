"""What verification says of the plan, of mixes of an earlier version, and what a build takes of a machine."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.base.manifest import FileRecord
from emma.tools.mix import needs as needs_module
from emma.tools.mix.build import build_mix, sources_of_nothing
from emma.tools.mix.catalogue import load_catalogue
from emma.tools.mix.layout import read_dataset_info, read_mix
from emma.tools.mix.needs import needs_of
from emma.tools.mix.prepare import expected_fingerprints, fingerprint_of, prepare
from emma.tools.mix.report import verified_page
from emma.tools.mix.verify import verify_mix
from emma.tools.pack.store import open_component
from tests.tiny_mix import TinyMix
from tests.tools.mix.conftest import MakeSettings


def edit_plan(folder: Path, language: str, **values: Any) -> None:
    """Changes a source's row of `plan.parquet`, and its checksum."""
    path = folder / "plan.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        if row["language"] == language:
            row.update({key: value(row) if callable(value) else value for key, value in values.items()})
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    sign(folder)


def sign(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in manifest["outputs"]:
        record.update(vars(FileRecord.of(folder / record["path"], folder)))
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_source_off_its_plan_is_a_fault(make_settings: MakeSettings, packing: str) -> None:
    settings = make_settings(samples=400, length=256, packing=packing)
    mix = build_mix(settings)
    plan = {row["language"]: row for row in pq.read_table(mix.folder / "plan.parquet").to_pylist()}
    language = next(name for name, row in plan.items() if row["rounding"] == "nearest" and "-" not in name)
    row = plan[language]
    catalogue = load_catalogue(open_component(settings.store / "monolingual"))
    longest = int(catalogue.counts.longest[catalogue.languages.index(language)])
    built = row["built_tokens"]
    assert verify_mix(mix.folder).faults == [] and abs(built - row["tokens"]) <= longest / 2
    for off, found in ((longest // 2, False), (longest // 2 + 1, True), (-(longest // 2) - 1, True)):
        edit_plan(mix.folder, language, tokens=built + off)
        faults = verify_mix(mix.folder).faults
        assert bool(faults) == found
        if found:
            direction = "fewer" if off > 0 else "more"
            assert f"{language} gives {built:,} tokens, {abs(off):,} {direction} than planned" in faults[0]
    edit_plan(mix.folder, language, tokens=built + longest, rounding="balanced")
    assert verify_mix(mix.folder).faults == []
    edit_plan(mix.folder, language, tokens=built + longest + 1, rounding="balanced")
    assert "whole documents explain" in verify_mix(mix.folder).faults[0]
    edit_plan(
        mix.folder, language, tokens=built, rounding="nearest", max_epochs=(built - 1) / row["store_tokens"]
    )
    assert (
        f"{language} gives {built:,} tokens, but its cap is {built - 1:,}" in verify_mix(mix.folder).faults[0]
    )


def test_the_closing_source_takes_no_more_than_the_others_leave(make_settings: MakeSettings) -> None:
    settings = make_settings(samples=400, length=256)
    mix = build_mix(settings)
    plan = pq.read_table(mix.folder / "plan.parquet").to_pylist()
    closing = next(row["language"] for row in plan if row["rounding"] == "closing")
    assert [row["rounding"] for row in plan].count("closing") == 1
    edit_plan(mix.folder, closing, tokens=lambda row: row["built_tokens"] - 5_000)
    assert any(
        "which makes up the total, is 5,000 tokens off" in fault for fault in verify_mix(mix.folder).faults
    )


def test_a_source_that_gives_nothing_is_named(make_settings: MakeSettings) -> None:
    settings = make_settings(samples=6, length=64)
    mix = build_mix(settings)
    nothing = sources_of_nothing(mix)
    plan = {row["language"]: row for row in pq.read_table(mix.folder / "plan.parquet").to_pylist()}
    assert nothing and all(plan[name.split("/")[1]]["built_documents"] == 0 for name in nothing)
    found = verify_mix(mix.folder)
    assert found.faults == [] and any("give nothing" in note and nothing[0] in note for note in found.notes)
    page = verified_page(mix, found)
    assert "give nothing" in page and "no faults" in page


def test_a_mix_of_the_earlier_rules_is_told_apart(make_settings: MakeSettings) -> None:
    settings = make_settings(samples=40)
    mix = build_mix(settings)
    now, earlier = expected_fingerprints(settings)
    assert (mix.fingerprint, mix.rules) == (now, 2) and earlier != now
    # As the earlier version wrote it: no `rules`, another fingerprint.
    for path in (mix.folder / "mix.json", *mix.folder.rglob("dataset.json")):
        value = json.loads(path.read_text())
        value.pop("rules", None)
        key = "fingerprint" if path.name == "mix.json" else "mix_fingerprint"
        value[key] = earlier
        path.write_bytes(orjson.dumps(value))
    sign(mix.folder)
    old = read_mix(mix.folder)
    assert (old.rules, old.fingerprint) == (1, earlier)
    with pytest.raises(UserError, match=r"as an earlier version built it.* continues with it.* --replace"):
        build_mix(settings)
    found = verify_mix(mix.folder, fingerprint=now, earlier=earlier)
    assert found.faults == [] and "was built by an earlier version's rules" in found.notes[0]
    assert any(
        "was built from another recipe" in fault for fault in verify_mix(mix.folder, fingerprint=now).faults
    )
    assert build_mix(settings, replace=True).fingerprint == now


def test_the_earlier_fingerprint_is_what_it_was(tiny: TinyMix, make_settings: MakeSettings) -> None:
    """Of the same content, without the key that tells the rules."""
    import hashlib

    settings = make_settings(samples=40)
    prepared = prepare(settings)
    content = {
        "format": 2,
        "seed": settings.mix.seed,
        "packing": "concatenate",
        "samples": 40,
        "sequence_length": 64,
        "store": {component.name: component.fingerprint for component in prepared.components},
        "sources": [
            [row.source.component, row.source.language, row.target_tokens, row.cap_tokens]
            for row in prepared.plan.sources
        ],
        "groups": [[group.name, sorted(group.targets.items())] for group in prepared.plan.groups],
        "consumed": [],
    }
    assert fingerprint_of(settings, prepared, rules=1) == hashlib.sha256(orjson.dumps(content)).hexdigest()


def test_a_machine_that_has_too_little_is_refused(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(samples=4000)
    prepared = prepare(settings)
    needs = needs_of(settings, prepared)
    info = read_dataset_info(build_mix(settings).train)
    size = sum(
        path.stat().st_size for path in settings.folder.joinpath("train").iterdir() if not path.is_symlink()
    )
    # Headers, descriptions and the number of rows are estimates.
    assert abs(needs.mix - size) < 0.05 * size + 8_000 and abs(needs.rows - info.rows) < 0.05 * info.rows
    assert needs.documents == sum(len(load_catalogue(component).tokens) for component in prepared.components)
    assert "GiB of memory" in next(needs.lines()) and needs.shortages(settings.folder) == []
    large = replace(needs, memory=1 << 60)
    assert "GiB of memory, but" in large.shortages(settings.folder)[0]
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(needs_module.shutil, "disk_usage", lambda _: usage)
    other = make_settings("other", samples=4000)
    with pytest.raises(UserError, match=r"building needs .*B of disk, but 1 B are free"):
        build_mix(other)
    assert not other.folder.exists()


def test_a_budget_of_all_there_is_lacks_the_last_label(make_settings: MakeSettings, tiny: TinyMix) -> None:
    mix = {"components": {"bilingual": {"share": 1, "max_epochs": 1.0}}, "validation": {"min_tokens": 50}}
    held = prepare(make_settings(samples=1, **mix)).components[0]
    tokens = sum(row["tokens"] for row in held.sources.to_pylist() if row["split"] == "train")
    settings = make_settings(samples=1, length=tokens, **mix)
    with pytest.raises(CheckFailedError, match="the last sample's last label is one more"):
        build_mix(settings)
    fits = build_mix(make_settings(samples=1, length=tokens - 1, **mix))
    assert read_dataset_info(fits.train).tokens == tokens


@pytest.mark.parametrize("length", [8, 20])
def test_one_sample_that_every_document_exceeds(make_settings: MakeSettings, length: int) -> None:
    for packing in ("concatenate", "best_fit"):
        settings = make_settings(f"{packing}{length}", samples=1, length=length, packing=packing)
        info = read_dataset_info(build_mix(settings).train)
        assert info.samples == 1 and info.label_tokens == length
        found = verify_mix(settings.folder)
        assert found.faults == [] and found.order is not None and "too few" in found.order.summary()
