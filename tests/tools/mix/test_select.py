"""Every source gives what was planned, to the document; the whole comes out to the token; no cap is exceeded."""

from __future__ import annotations

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.tools.mix import catalogue as catalogue_module
from emma.tools.mix import select
from emma.tools.mix.catalogue import Catalogue, Part
from emma.tools.mix.select import Chooser, numbers_of
from tests.tools.mix.catalogues import make_catalogue, planned, times, tokens_read

UNCAPPED = 10**12


def sizes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lengths as real text has them: most short, some very long."""
    return np.clip(rng.lognormal(5.5, 1.3, count), 2, 400_000).astype(np.int64)


def many_sources(seed: int, sources: int) -> Catalogue:
    """Sources of 1 to a few thousand documents."""
    rng = np.random.default_rng(seed)
    counts = np.maximum(1, (10 ** rng.uniform(0, 3.3, sources)).astype(int))
    return make_catalogue("web", {f"l{i:04d}": sizes_of(rng, int(count)) for i, count in enumerate(counts)})


def off(
    catalogue: Catalogue, targets: dict[str, tuple[int, int]], seed: int, total: int | None
) -> dict[str, float]:
    """Deviation of each source in its own longest documents."""
    choice = Chooser({"web": catalogue}, seed).choose(planned(catalogue, targets), total)
    read = tokens_read(catalogue, choice)
    assert {key[1]: each.tokens for key, each in choice.rounded.items()} == {
        name: tokens for name, tokens in read.items() if name in targets
    }
    if total is not None:
        assert sum(read.values()) == total == choice.tokens
    longest = dict(zip(catalogue.languages, catalogue.counts.longest.tolist(), strict=True))
    for name, (_, cap) in targets.items():
        assert read[name] <= cap
    return {name: (read[name] - target) / longest[name] for name, (target, _) in targets.items()}


def test_the_book_is_rounded_by_itself() -> None:
    """A language with one book of 325,000 tokens, of which 33,876 are planned, is no debt of the next source."""
    rng = np.random.default_rng(1)
    sizes = {
        "book": np.append(rng.integers(20, 600, 60), 325_000),
        "alone": np.array([325_000]),
        "next": rng.integers(50, 900, 2_000),
        "small": rng.integers(50, 900, 30),
        "large": rng.integers(50, 900, 20_000),
    }
    catalogue = make_catalogue("web", sizes)
    wanted = {"book": 33_876, "alone": 33_876, "next": 70_000, "small": 6_000, "large": 5_000_000}
    targets = {name: (target, UNCAPPED) for name, target in wanted.items()}
    for seed in range(40):
        found = off(catalogue, targets, seed, sum(wanted.values()) + 1)
        assert max(map(abs, found.values())) <= 0.5
        choice = Chooser({"web": catalogue}, seed).choose(
            planned(catalogue, targets), sum(wanted.values()) + 1
        )
        read, closing = tokens_read(catalogue, choice), choice.closing and choice.closing.key[1]
        # The book is left out for documents that fit, or read in part to make up the total.
        assert (read["alone"] == 0 or closing == "alone") and read["book"] > 10_000
        assert abs(read["next"] - wanted["next"]) <= 450


@pytest.mark.parametrize("epochs", [0.37, 1.6])
def test_of_3000_sources_none_is_off_by_more_than_a_document(epochs: float) -> None:
    catalogue = many_sources(int(100 * epochs), 3_000)
    held = dict(zip(catalogue.languages, catalogue.counts.tokens.tolist(), strict=True))
    rng = np.random.default_rng(5)
    targets = {
        name: (max(1, int(tokens * epochs * rng.uniform(0.8, 1.2))), int(tokens * 2))
        for name, tokens in held.items()
    }
    total = sum(target for target, _ in targets.values()) + 1
    found = np.array(list(off(catalogue, targets, 1, total).values()))
    assert np.abs(found).max() <= 1
    assert (np.abs(found) > 0.5).mean() < 0.1
    # Without a total, every source is rounded by itself.
    alone = np.array(list(off(catalogue, targets, 1, None).values()))
    assert np.abs(alone).max() <= 0.5


def test_no_source_gives_more_than_its_cap() -> None:
    for seed in range(30):
        catalogue = many_sources(seed, 60)
        held = dict(zip(catalogue.languages, catalogue.counts.tokens.tolist(), strict=True))
        rng = np.random.default_rng(seed)
        targets = {}
        for number, (name, tokens) in enumerate(held.items()):
            cap = int(tokens * rng.choice([0.5, 1.0, 2.3]))
            # Every second source is at its cap.
            targets[name] = (cap if number % 2 else max(1, int(cap * rng.uniform(0.3, 1))), cap)
        total = sum(target for target, _ in targets.values())
        found = off(catalogue, targets, seed, total)  # which checks every cap
        at_cap = [found[name] for name, (target, cap) in targets.items() if target == cap]
        assert max(at_cap) <= 0 and min(at_cap) > -1


def test_a_cap_just_above_the_next_document_lets_it_in() -> None:
    catalogue = make_catalogue("web", {"a": [100] * 10, "b": [100] * 1000})

    def given(target: int, cap: int) -> int:
        choice = Chooser({"web": catalogue}, 0).choose(planned(catalogue, {"a": (target, cap)}))
        return tokens_read(catalogue, choice)["a"]

    assert [given(460, 500), given(460, 499), given(440, 1000)] == [500, 400, 400]
    assert [given(1460, 1500), given(1460, 1499), given(1000, 1000)] == [1500, 1400, 1000]


def test_what_the_caps_keep_out_of_reach_is_refused() -> None:
    catalogue = make_catalogue("web", {"a": [100] * 10, "b": [70] * 10})
    everything = {"a": (1000, 1000), "b": (700, 700)}
    chooser = Chooser({"web": catalogue}, 0)
    choice = chooser.choose(planned(catalogue, everything), 1700)
    assert tokens_read(catalogue, choice) == {"a": 1000, "b": 700}
    with pytest.raises(
        UserError, match=r"give 1,700 tokens in whole documents within their caps, .* needs 1,701"
    ):
        chooser.choose(planned(catalogue, everything), 1701)
    # Both are rounded down, for their caps, and only one document is read in part.
    with pytest.raises(UserError, match="needs 750"):
        chooser.choose(planned(catalogue, {"a": (450, 450), "b": (300, 300)}), 750)
    choice = chooser.choose(planned(catalogue, {"a": (450, 450), "b": (280, 300)}), 730)
    assert tokens_read(catalogue, choice) == {"a": 450, "b": 280}


def test_a_source_filled_up_when_no_other_can_take_all_that_is_missing() -> None:
    # Each may still give 40 more; 70 are missing.
    catalogue = make_catalogue("web", {"a": [10] * 100, "b": [10] * 100, "c": [1000]})
    targets = {"a": (500, 540), "b": (400, 440), "c": (70, 1000)}
    choice = Chooser({"web": catalogue}, 3).choose(planned(catalogue, targets), 970)
    read = tokens_read(catalogue, choice)
    assert sum(read.values()) == 970 and read["a"] <= 540 and read["b"] <= 440


@pytest.mark.parametrize("total", [1, 2, 99, 100, 101, 1999, 2000, 5003])
def test_one_source_alone_gives_any_total(total: int) -> None:
    catalogue = make_catalogue("web", {"a": [100] * 20})
    choice = Chooser({"web": catalogue}, 0).choose(planned(catalogue, {"a": (total, UNCAPPED)}), total)
    assert tokens_read(catalogue, choice)["a"] == total
    read = times(catalogue, choice)
    assert read.max() - read.min() <= 1


def test_documents_are_repeated_evenly_and_drawn_by_the_seed() -> None:
    catalogue = many_sources(3, 20)
    held = dict(zip(catalogue.languages, catalogue.counts.tokens.tolist(), strict=True))
    targets = {name: (int(2.4 * tokens) + 1, UNCAPPED) for name, tokens in held.items()}
    total = sum(target for target, _ in targets.values())
    reads = []
    for seed in (1, 1, 2):
        choice = Chooser({"web": catalogue}, seed).choose(planned(catalogue, targets), total)
        reads.append(times(catalogue, choice))
        for code in range(20):
            mine = reads[-1][catalogue.language == code]
            assert mine.min() >= 2 and mine.max() <= 3
    assert np.array_equal(reads[0], reads[1]) and not np.array_equal(reads[0], reads[2])


def test_the_choice_does_not_depend_on_parts_or_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for documents, cells in ((1 << 18, 1 << 20), (7, 64), (1000, 4096)):
        monkeypatch.setattr(catalogue_module, "PART_DOCUMENTS", documents)
        monkeypatch.setattr(select, "_CELLS", cells)
        catalogue = many_sources(4, 12)
        held = dict(zip(catalogue.languages, catalogue.counts.tokens.tolist(), strict=True))
        targets = {name: (int(0.7 * tokens) + 1, tokens) for name, tokens in held.items()}
        chooser = Chooser({"web": catalogue}, 9)
        results.append(
            times(catalogue, chooser.choose(planned(catalogue, targets), sum(t for t, _ in targets.values())))
        )
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_documents_kept_out_are_never_read() -> None:
    catalogue = make_catalogue("web", {"a": [10] * 1000})
    catalogue.validation[::7] = True
    held = int(catalogue.counts.tokens[0])
    assert held == 10 * (1000 - 143)
    choice = Chooser({"web": catalogue}, 0).choose(
        planned(catalogue, {"a": (3 * held + 55, UNCAPPED)}), 3 * held + 55
    )
    read = times(catalogue, choice)
    assert read[::7].max() == 0 and read.sum() == 3 * 857 + 6


def test_any_document_is_as_likely_as_any_other() -> None:
    """Of equally long documents, each is taken about as often over many seeds, and pairs are independent."""
    catalogue = make_catalogue("web", {"a": [10] * 200})
    taken = np.array(
        [
            times(catalogue, Chooser({"web": catalogue}, seed).choose(planned(catalogue, {"a": (600, 2000)})))
            for seed in range(1000)
        ]
    )
    assert (taken.sum(axis=1) == 60).all()
    share = taken.mean(axis=0)
    # 1,000 draws with probability 0.3: a standard deviation of 0.0145.
    assert np.abs(share - 0.3).max() < 5 * 0.0145 and 0.8 < share.std() / 0.0145 < 1.2
    together = (taken[:, :-1] * taken[:, 1:]).mean()
    assert together == pytest.approx(0.3 * 59 / 199, abs=0.005)


def test_random_numbers_are_uniform() -> None:
    numbers = numbers_of(Part(0, 1 << 16, 0, 0), np.full(1 << 16, 12345, np.uint64))
    for shift in (0, 20, 54):
        counts = np.bincount(
            ((numbers >> np.uint64(shift)) & np.uint64(1023)).astype(np.int64), minlength=1024
        )
        # Chi-square with 1,023 degrees of freedom: 1,023 ± 45.
        assert abs(((counts - 64) ** 2 / 64).sum() - 1023) < 5 * 45


def test_a_store_that_counts_otherwise_is_refused() -> None:
    catalogue = make_catalogue("web", {"a": [10] * 20})
    rows = planned(catalogue, {"a": (50, 100)})
    catalogue.tokens[0] = 11
    with pytest.raises(UserError, match="hold 201 tokens for training, but the plan counts 200"):
        Chooser({"web": make_catalogue("web", {"a": [10] * 19 + [11]})}, 0).choose(rows)
