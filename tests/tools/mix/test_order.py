"""A uniform order passes, at the stated rate; a curriculum is found, also the one that best-fit packing once made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from emma.base.manifest import FileRecord
from emma.tools.mix import fit
from emma.tools.mix.build import build_mix
from emma.tools.mix.layout import ROW, DatasetInfo, SourceInfo, read_dataset_info
from emma.tools.mix.order import Order, Units, judge
from emma.tools.mix.packing import best_fit, cut_to_samples
from emma.tools.mix.verify import verify_mix
from tests.tools.mix.conftest import MakeSettings

SHARES = (0.6, 0.39, 0.01)


def lengths_of(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.clip(rng.lognormal(5.5, 1.2, count), 2, 60_000).astype(np.int64)


def rows_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Documents of three sources, one of them rare and ten times as long, in random order."""
    rows = np.zeros(count, ROW)
    rows["source"] = rng.choice(3, count, p=SHARES)
    rows["tokens"] = lengths_of(rng, count) * np.where(rows["source"] == 2, 10, 1)
    return rows


def order_of(rows: np.ndarray, sizes: np.ndarray | None = None, false_alarm: float = 1e-6) -> Order:
    """The tests on rows in this order: one stream, or samples of `sizes` rows."""
    source = rows["source"]
    infos = [
        SourceInfo(
            component,
            language,
            category,
            int((source == number).sum()),
            int((source == number).sum()),
            int(rows["tokens"][source == number].sum()),
        )
        for number, (component, language, category) in enumerate(
            (("web", "a", "high"), ("web", "b", "low"), ("books", "c", None))
        )
    ]
    info = DatasetInfo(
        Path("train"),
        "concatenate" if sizes is None else "best_fit",
        2048,
        len(rows) if sizes is None else len(sizes),
        len(rows),
        len(rows),
        0,
        int(rows["tokens"].sum()),
        0,
        "int32",
        100,
        [],
        infos,
        "0",
    )
    units = Units(info)
    place = np.arange(len(rows)) if sizes is None else np.repeat(np.arange(len(sizes)), sizes)
    # In pieces, as a verification reads them.
    for piece in np.array_split(np.arange(len(rows)), 7):
        units.add(rows[piece], place[piece])
    return units.order(false_alarm)


def test_uniform_orders_fail_no_more_often_than_stated() -> None:
    """Over 400 orders, with an error rate of one in twenty: the bounds are safe, so it is less."""
    rng = np.random.default_rng(0)
    alarms, largest = 0, []
    for _ in range(400):
        rows = rows_of(rng, 2_000)
        found = order_of(rows, false_alarm=0.05)
        alarms += bool(found.faults)
        largest.append([each.z for each in found.quantities])
    assert alarms <= 20 + 4 * 4.4
    # Trends are standard normal: neither too wide, which would be a false alarm, nor too narrow, which would be blind.
    spread = np.array(largest).std(axis=0)
    assert (np.abs(spread - 1) < 0.15).all(), spread


def test_samples_in_uniform_order_pass() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        sizes = rng.integers(1, 12, 1_500)
        assert order_of(rows_of(rng, int(sizes.sum())), sizes).faults == []


def _steady(rows: np.ndarray, rng: np.random.Generator, change: float) -> np.ndarray:
    """Puts source 0 earlier: its density falls by `change` of its mean from the beginning to the end."""
    # Rejection: a document of source 0 takes a place u with the density 1 + change (1/2 - u).
    key = rng.random(len(rows))
    mine = rows["source"] == 0
    u = rng.random(4 * len(rows))
    u = u[rng.random(len(u)) < (1 + change * (0.5 - u)) / (1 + abs(change) / 2)]
    key[mine] = u[: mine.sum()]
    return rows[np.argsort(key)]


def test_what_is_said_to_be_seen_is_seen() -> None:
    """A steady change twice as large as the one that would be seen half of the time is always found."""
    rng = np.random.default_rng(2)
    for _ in range(10):
        rows = rows_of(rng, 30_000)
        high = {each.name: each for each in order_of(rows).quantities}["share of category web/high"]
        # If the source's density changes by c, its share p changes by c (1 - p).
        least = high.least_trend / (1 - high.mean)
        assert 0.05 < least < 0.7
        faults = order_of(_steady(rows, rng, 2 * least)).faults
        assert any("category web/high changes over the run" in fault and "down" in fault for fault in faults)
        assert order_of(_steady(rows, rng, least / 6)).faults == []


def test_a_bend_in_the_middle_is_seen() -> None:
    """Source 1 only in the middle of the run: no trend, but parts that are not like the whole."""
    rng = np.random.default_rng(3)
    rows = rows_of(rng, 50_000)
    key = rng.random(len(rows))
    mine = rows["source"] == 1
    key[mine] = 0.35 + 0.3 * key[mine]
    found = order_of(rows[np.argsort(key)])
    assert any("share of category web/low is" in fault and "of the run" in fault for fault in found.faults)


def test_a_hundredth_that_is_different_is_seen() -> None:
    rng = np.random.default_rng(4)
    rows = rows_of(rng, 100_000)
    rows = rows[
        np.argsort(
            np.where((rows["source"] == 0) & (rng.random(len(rows)) < 0.02), 0.505, rng.random(len(rows)))
        )
    ]
    assert any("in part 51 of 100" in fault for fault in order_of(rows).faults)


def test_too_few_units_are_said_to_say_nothing() -> None:
    rng = np.random.default_rng(5)
    few = order_of(rows_of(rng, 12))
    assert few.faults == [] and len(few.silent) == len(few.quantities) > 0
    assert "too few to tell" in few.summary()
    some = order_of(rows_of(rng, 3_000))
    assert "share of books/c" in some.silent and "share of component web" not in some.silent
    assert "too small to judge" in some.summary() and "share of books/c" in some.summary()
    nothing = judge([], 0, "one document")
    assert nothing.tests == 0 and "too few" in nothing.summary()


# ---- the planted fault ----------------------------------------------------------------------------------------------


def bins_by_first_row(bins: np.ndarray, made: int) -> np.ndarray:
    """The order that best-fit samples once had: by the smallest index of their rows. Each row's index is random, but the
    smallest of many is smaller than the only one of a long document: samples of many short documents came first."""
    first = np.full(made, len(bins), np.int64)
    np.minimum.at(first, bins, np.arange(len(bins)))
    rank = np.empty(made, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(made)
    return rank


def packed(rows: np.ndarray, rank: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and sizes of best-fit samples whose order `rank` gives."""
    rows, _, _ = cut_to_samples(rows, 2049, 4)
    bins, made = best_fit(rows["tokens"].astype(np.int64), 2049)
    place = rank(bins, made)[bins]
    return rows[np.argsort(place, kind="stable")], np.bincount(place, minlength=made)


def correlations(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Correlation of a sample's place with its number of documents, their mean length and the share of source 0, in standard
    deviations of a uniform order."""
    sample = np.repeat(np.arange(len(sizes)), sizes)
    tokens = np.bincount(sample, rows["tokens"])
    share = np.bincount(sample, np.where(rows["source"] == 0, rows["tokens"], 0)) / tokens
    values = (sizes, tokens / sizes, share)
    return np.array(
        [np.corrcoef(np.arange(len(sizes)), each)[0, 1] * np.sqrt(len(sizes) - 1) for each in values]
    )


def test_the_old_order_of_samples_is_a_curriculum_and_is_found() -> None:
    rng = np.random.default_rng(6)
    rows = rows_of(rng, 12_000)
    old, sizes = packed(rows, bins_by_first_row)
    assert np.abs(correlations(old, sizes)).max() > 10
    faults = order_of(old, sizes).faults
    assert any(fault.startswith("documents in a sample changes over the run") for fault in faults)
    new, sizes = packed(rows, lambda bins, made: rng.permutation(made))
    assert np.abs(correlations(new, sizes)).max() < 4
    assert order_of(new, sizes).faults == []


def _rewrite(folder: Path, rows: np.ndarray, sizes: np.ndarray) -> None:
    """Writes rows in another order over those of a mix, with samples, indices and manifest that agree."""
    info = read_dataset_info(folder / "train")
    np.save(folder / "train" / "rows.npy", rows)
    begins = np.append(0, np.cumsum(sizes))
    np.save(folder / "train" / "samples.npy", np.stack([begins, np.zeros(len(begins), np.int64)], axis=1))
    for number, shard in enumerate(info.shards):
        mine = rows[rows["shard"] == number]
        path = folder / "train" / f"{shard.name}.idx"
        content = path.read_bytes()[:34] + mine["tokens"].tobytes() + mine["offset"].tobytes()
        path.write_bytes(content + np.arange(len(mine) + 1).tobytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in manifest["outputs"]:
        record.update(vars(FileRecord.of(folder / record["path"], folder)))
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))


def test_verify_fails_on_a_mix_in_the_old_order(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("mix", 3_000, 512, packing="best_fit")
    build_mix(settings)
    found = verify_mix(settings.folder)
    assert found.faults == [] and found.order is not None and found.order.units == 3_000
    assert max(abs(each.z) for each in found.order.quantities) < 4
    # The samples as they are, by the smallest of random places of their rows.
    rows = np.load(settings.folder / "train" / "rows.npy")
    sizes = np.diff(np.load(settings.folder / "train" / "samples.npy")[:, 0])
    bins = np.repeat(np.arange(len(sizes)), sizes)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    rank = bins_by_first_row(bins[shuffled], len(sizes))
    order = np.argsort(rank)
    starts = np.cumsum(sizes) - sizes
    again = np.concatenate([rows[starts[sample] : starts[sample] + sizes[sample]] for sample in order])
    _rewrite(settings.folder, again, sizes[order])
    found = verify_mix(settings.folder)
    assert found.faults and all(
        "changes over the run" in fault or "of the run" in fault for fault in found.faults
    )
    assert any("documents in a sample" in fault for fault in found.faults)
    # Written again in the order it had, the mix passes: the fault is the order.
    _rewrite(settings.folder, rows, sizes)
    assert verify_mix(settings.folder).faults == []


def test_samples_of_several_buckets_are_in_uniform_order(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets are packed one by one, but the run does not go through them one by one."""
    monkeypatch.setattr(fit, "PACKED_ROWS", 500)
    settings = make_settings("mix", 2_000, 512, packing="best_fit")
    info = read_dataset_info(build_mix(settings).train)
    assert info.samples == 2_000 and info.padding < 0.1
    found = verify_mix(settings.folder)
    assert found.faults == []


def test_bands_hold_no_share_below_nothing_or_above_all() -> None:
    rng = np.random.default_rng(3)
    order = order_of(rows_of(rng, 5000))
    bands = {each.name: (each.low, each.high) for each in order.quantities if each.parts}
    assert min(low for low, _ in bands.values()) >= 0
    low, high = bands["share of component books"]
    assert low == 0 and 0 < high <= 1
    assert bands["mean length of a piece"][1] > 1
