"""Rehydration: what the web repeats is read more often, each document a known number of times, and the rest stays."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from emma.base.errors import UserError
from emma.recipes.schema.data import Mix, MixComponent
from emma.recipes.schema.model import Tokenizer
from emma.tools.mix.build import build_mix
from emma.tools.mix.catalogue import Catalogue, load_catalogue
from emma.tools.mix.prepare import MixSettings, fingerprint_of, prepare
from emma.tools.mix.rehydrate import rehydration_faults, with_reads
from emma.tools.mix.select import Chooser
from emma.tools.mix.verify import verify_mix
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.run import pack_store
from emma.tools.pack.store import open_component
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tiny_mix import TinyMix, tiny_data
from tests.tools.mix.catalogues import make_catalogue, planned, times, tokens_read
from tests.tools.mix.test_verify import sign

TABLE = [{"copies": 2, "times": 2}, {"copies": 10, "times": 5}, {"copies": 1000, "times": 1}]
COPIES = np.array([1, 2, 9, 10, 999, 1000])
TIMES = {1: 1, 2: 2, 9: 2, 10: 5, 999: 5, 1000: 1}


def rehydrated(sizes: dict[str, np.ndarray], seed: int = 0) -> Catalogue:
    catalogue = make_catalogue("web", sizes)
    drawn = np.random.default_rng(seed).choice([1, 1, 1, 2, 5], len(catalogue.tokens))
    return dataclasses.replace(catalogue, times=drawn.astype(np.uint8))


@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.7, 2.0, 6.4])
def test_documents_are_read_in_proportion_and_sources_to_half_a_document(epochs: float) -> None:
    rng = np.random.default_rng(7)
    sizes = {f"l{number}": rng.integers(2, 300, 3000) for number in range(3)}
    catalogue = rehydrated(sizes)
    assert catalogue.times is not None
    chooser = Chooser({"web": catalogue}, seed=1)
    targets = {language: (int(epochs * held.sum()), int(10 * held.sum())) for language, held in sizes.items()}
    rows = planned(catalogue, targets)
    choice = chooser.choose(rows)
    for language, tokens in tokens_read(catalogue, choice).items():
        assert abs(tokens - targets[language][0]) <= sizes[language].max() / 2
        assert tokens == choice.rounded["web", language].tokens
    found = times(catalogue, choice)
    weight = catalogue.times.astype(np.int64)
    for code, language in enumerate(catalogue.languages):
        mine = catalogue.language == code
        whole = (targets[language][0] - 1) // chooser.held(("web", language))
        assert (found[mine] >= whole * weight[mine]).all()
        assert (found[mine] <= (whole + 1) * weight[mine]).all()
    # Five times as often as those that are read once a pass: 600 documents of 5 against 1,800 of 1, a few per cent of noise.
    rate = [found[weight == each].sum() / (weight == each).sum() for each in (1, 2, 5)]
    assert rate[1] / rate[0] == pytest.approx(2, rel=0.12)
    assert rate[2] / rate[0] == pytest.approx(5, rel=0.12)


def test_a_total_is_met_to_the_token_and_everything_once_a_pass_is_the_plain_choice() -> None:
    rng = np.random.default_rng(3)
    sizes = {f"l{number}": rng.integers(2, 300, 400) for number in range(5)}
    plain, catalogue = make_catalogue("web", sizes), rehydrated(sizes)
    once = dataclasses.replace(plain, times=np.ones(len(plain.tokens), np.uint8))
    targets = {language: (int(1.4 * held.sum()), int(4 * held.sum())) for language, held in sizes.items()}
    total = sum(target for target, _ in targets.values())
    choice = Chooser({"web": catalogue}, 5).choose(planned(catalogue, targets), total)
    assert sum(tokens_read(catalogue, choice).values()) == total
    same = [
        times(each, Chooser({"web": each}, 5).choose(planned(each, targets), total)) for each in (plain, once)
    ]
    assert np.array_equal(*same)


def test_the_proof_allows_the_closing_document_one_more_reading_and_no_other() -> None:
    rng = np.random.default_rng(4)
    sizes = {f"l{number}": rng.integers(2, 300, 200) for number in range(2)}
    catalogue = rehydrated(sizes)
    targets = {language: (int(1.4 * held.sum()), int(4 * held.sum())) for language, held in sizes.items()}
    choice = Chooser({"web": catalogue}, 5).choose(
        planned(catalogue, targets), sum(target for target, _ in targets.values())
    )
    keys = list(choice.rounded)
    table = pa.table({"component": [key[0] for key in keys], "language": [key[1] for key in keys]})
    table = table.append_column("rounding", pa.array([choice.rounded[key].rounding for key in keys]))
    plan = with_reads(table, choice).to_pylist()
    read = times(catalogue, choice)
    assert choice.closing is not None

    def faults(change: dict[int, int], *, consumed: bool = False) -> list[str]:
        changed = read.copy()
        for document, count in change.items():
            changed[document] = count
        return list(rehydration_faults(catalogue, changed, plan, 5, consumed=consumed))

    closing = choice.closing.document
    other = next(place for place in np.flatnonzero(read).tolist() if place != closing)
    assert faults({}) == []
    for change in (
        {closing: read[closing] + 1},
        {closing: read[closing] - 1},
        {other: read[other] + 1},
        {other: 0},
    ):
        assert len(faults(change)) == 1
    assert faults({other: 0}, consumed=True) == []


def test_the_recipe_key() -> None:
    plain = MixComponent.model_validate({"share": 1})
    assert "rehydrate" not in plain.model_dump()  # fingerprints of recipes without it stay
    value = MixComponent.model_validate({"share": 1, "rehydrate": TABLE})
    assert MixComponent.model_validate(value.model_dump(mode="json")) == value
    for wrong in (
        [{"copies": 1, "times": 2}],
        [{"copies": 2, "times": 0}],
        [{"copies": 2, "times": 2}, {"copies": 2, "times": 3}],
    ):
        with pytest.raises(ValidationError):
            MixComponent.model_validate({"share": 1, "rehydrate": wrong})


@pytest.fixture(scope="module")
def counted(tiny: TinyMix, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store, with counts of copies for the component of text."""
    folder = tmp_path_factory.mktemp("counted")
    shutil.copytree(tiny.corpus, folder / "corpus")
    for number, path in enumerate(sorted((folder / "corpus" / "split" / "monolingual").rglob("*.parquet"))):
        table = pq.read_table(path)
        copies = np.random.default_rng(number).choice(COPIES, len(table))
        pq.write_table(table.append_column("copies", pa.array(copies, pa.int64())), path)
    file = TokenizerFile(Tokenizer.model_validate(tiny.tokenizer_settings), tiny.vocab_size)
    pack_store(PackSettings(tiny_data().pack, file, folder / "corpus", folder / "store", "0" * 64), workers=1)
    return folder / "store"


def settings_of(tiny: TinyMix, store: Path, folder: Path, samples: int = 60, **changes: Any) -> MixSettings:
    value = {**tiny.data.mix.model_dump(), **changes}
    value["components"]["monolingual"]["rehydrate"] = TABLE
    return MixSettings(Mix.model_validate(value), "mix", folder / "mix", store, samples, 64, "0" * 64)


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_mix_is_built_and_proved(tiny: TinyMix, counted: Path, tmp_path: Path, packing: str) -> None:
    settings = settings_of(tiny, counted, tmp_path, samples=4000, packing=packing)
    plan = prepare(settings).plan
    note = next(note for note in plan.notes if "rehydrated" in note)
    component = open_component(counted / "monolingual")
    catalogue = load_catalogue(component, settings.mix.components["monolingual"].rehydrate)
    copies = np.concatenate([pq.read_table(shard.documents_path)["copies"] for shard in component.shards])
    expected = np.array([TIMES[each] for each in copies.tolist()])
    assert np.array_equal(catalogue.times, expected)
    train = ~catalogue.validation
    assert f"{(expected[train] == 5).sum():,} × 5" in note
    assert f"{(expected * catalogue.tokens)[train].sum():,} tokens" in note
    plain = prepare(settings_of_plain(settings)).plan
    assert [row.target_tokens for row in plan.sources] == [row.target_tokens for row in plain.sources]
    mix = build_mix(settings)
    found = verify_mix(settings.folder, fingerprint=mix.fingerprint)
    assert found.faults == []
    assert any("rehydrated" in note for note in found.notes)
    rows = np.load(settings.folder / "train" / "rows.npy")
    assert len(rows) > 1000
    # Documents that are read five times a pass are read more often than those that are read once.
    reads = np.zeros(len(expected))
    shards = {number for number, shard in enumerate(mix_shards(mix.train)) if shard == "monolingual"}
    mine = rows[np.isin(rows["shard"], list(shards))]
    np.add.at(reads, catalogue.documents_at(0, mine["offset"]), 1)
    assert reads[train & (expected == 5)].mean() > 3.5 * reads[train & (expected == 1)].mean()


def settings_of_plain(settings: MixSettings) -> MixSettings:
    value = settings.mix.model_dump()
    del value["components"]["monolingual"]["rehydrate"]
    return dataclasses.replace(settings, mix=Mix.model_validate(value))


def mix_shards(train: Path) -> list[str]:
    from emma.tools.mix.layout import read_dataset_info

    return [shard.component for shard in read_dataset_info(train).shards]


def test_other_readings_than_the_copies_say_are_found(tiny: TinyMix, counted: Path, tmp_path: Path) -> None:
    """A mix of the same store that reads every document equally often, passed off as one that rehydrates."""
    settings = settings_of(tiny, counted, tmp_path, samples=4000)
    build_mix(settings)
    plan = settings.folder / "plan.parquet"
    table = pq.read_table(plan)
    below = pa.array([value // 2 for value in table["read_below"].to_pylist()], pa.uint64())
    pq.write_table(table.set_column(table.column_names.index("read_below"), "read_below", below), plan)
    sign(settings.folder, plan)
    assert any("but by its copies" in fault for fault in verify_mix(settings.folder).faults)
    pq.write_table(table.drop_columns(["read_below"]), plan)
    sign(settings.folder, plan)
    assert any("lacks the column read_below" in fault for fault in verify_mix(settings.folder).faults)


def test_fingerprints(tiny: TinyMix, counted: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny, counted, tmp_path)
    plain = settings_of_plain(settings)
    first, second = (fingerprint_of(each, prepare(each)) for each in (settings, plain))
    assert first != second
    value = settings.mix.model_dump()
    value["components"]["monolingual"]["rehydrate"] = [{"copies": 2, "times": 3}]
    other = dataclasses.replace(settings, mix=Mix.model_validate(value))
    assert fingerprint_of(other, prepare(other)) not in (first, second)


def test_a_store_without_counts_is_refused(tiny: TinyMix, counted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column `copies`.*deduplication\.counts"):
        prepare(settings_of(tiny, tiny.store, tmp_path))
    value = settings_of(tiny, counted, tmp_path).mix.model_dump()
    value["components"]["bilingual"]["rehydrate"] = TABLE
    pairs = dataclasses.replace(settings_of(tiny, counted, tmp_path), mix=Mix.model_validate(value))
    with pytest.raises(UserError, match="pairs have none"):
        prepare(pairs)


def test_an_earlier_phase_s_documents_stay_out(tiny: TinyMix, counted: Path, tmp_path: Path) -> None:
    first = settings_of(tiny, counted, tmp_path / "first", samples=20)
    build_mix(first)
    second = settings_of(tiny, counted, tmp_path / "second", exclude_consumed=[{"mix": str(first.folder)}])
    build_mix(second)
    assert verify_mix(second.folder).faults == []
