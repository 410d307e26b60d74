from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emma.recipes.schema.corpus import Corpus, Deduplication, NearDuplicates, Thresholds
from emma.tools.corpus.build import build_corpus
from emma.tools.corpus.duplicates import candidate_pairs, exact_copies, near_copies, over_used
from emma.tools.corpus.minhash import bands, jaccard, shingle_sets, shingles_of
from emma.tools.corpus.statistics import accounts_table
from tests.tools.corpus.raw_text import (
    ARTICLE,
    build_at,
    mono_source,
    pair_source,
    rows_of,
    words,
    write_jsonl,
)

NEAR = NearDuplicates()


def variant(text: str, changes: int, seed: int) -> str:
    """The text with some words replaced."""
    chooser = random.Random(seed)
    parts = text.split()
    for place in chooser.sample(range(len(parts)), changes):
        parts[place] = "".join(chooser.choices("qwxyjk", k=7))
    return " ".join(parts)


def exact_jaccard(one: str, other: str, script: str = "Latn") -> float:
    """Jaccard index of the shingles of two texts."""
    values, offsets = shingle_sets(shingles_of([one, other], NEAR, script))
    return jaccard(values[: offsets[1]], values[offsets[1] :])


@pytest.mark.parametrize("memory", [1 << 30, 64 * 100])
def test_exact_copies_keep_the_best_ranked(memory: int) -> None:
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 50, (400, 1)).astype(np.uint64).repeat(2, axis=1)
    ranks = generator.permutation(400)
    copies = exact_copies(lambda: iter([keys[:150], keys[150:150], keys[150:]]), ranks, memory)
    kept = np.setdiff1d(np.arange(400), copies.removed)
    assert sorted(keys[kept, 0]) == sorted(set(keys[:, 0]))
    for key in set(keys[:, 0].tolist()):
        members = np.flatnonzero(keys[:, 0] == key)
        assert members[ranks[members].argmin()] in kept
    assert (keys[copies.removed] == keys[copies.kept]).all()
    assert np.isin(copies.kept, kept).all()


def test_near_duplicates_are_found_and_others_stay(tmp_path: Path) -> None:
    originals = [words(seed, 120) for seed in range(200)]
    texts, close, far = list(originals), 0, 0
    planted: list[tuple[str, str, float]] = []
    for number, text in enumerate(originals):
        other = variant(text, 1 + number % 5, number)
        planted.append((text, other, exact_jaccard(text, other)))
        texts.append(other)
    random.Random(0).shuffle(texts)
    raw = write_jsonl(tmp_path / "raw.jsonl", ({"lang": "en", "text": text} for text in texts))
    build = build_at(tmp_path / "corpus", {"s": mono_source(raw)}, deduplication=Deduplication(near=NEAR))
    build_corpus(build, "deduplicated")
    left = {row["text"] for row in rows_of(build.root, "deduplicated")}
    duplicates = [(a, b) for a, b, index in planted if index >= 0.8]
    others = [(a, b) for a, b, index in planted if index < 0.8]
    assert len(duplicates) > 60
    assert len(others) > 60
    close = sum((a in left) != (b in left) for a, b in duplicates)
    far = sum(a in left and b in left for a, b in others)
    assert close >= 0.95 * len(duplicates)
    assert far == len(others)
    clusters = pq.read_table(build.root / "deduplicated/clusters").to_pylist()
    assert len(clusters) == len(texts) - len(left)
    by_id = {row["id"]: row["text"] for row in rows_of(build.root, "filtered")}
    for row in clusters:
        assert row["rule"] == "near_duplicate"
        assert by_id[row["removed_id"]] not in left
        assert by_id[row["kept_id"]] in left
        assert row["similarity"] == pytest.approx(
            exact_jaccard(by_id[row["removed_id"]], by_id[row["kept_id"]])
        )
        assert row["similarity"] >= 0.8


def test_characters_are_shingled_where_words_are_not_spaced() -> None:
    text = (ARTICLE["zh"] + ARTICLE["ja"]) * 3
    other = text.replace("理性", "良心", 1)
    assert exact_jaccard(text, other, "Hans") > 0.8
    assert len(shingles_of([text], NEAR, "Hans").hashes) > 150


def test_candidates_do_not_depend_on_memory_or_pieces() -> None:
    texts = [
        words(seed // 4, 80) if seed % 4 else variant(words(seed // 4, 80), 2, seed) for seed in range(200)
    ]
    hashes = bands(shingles_of(texts, NEAR, "Latn"), NEAR).T
    ranks = np.arange(200)
    whole = candidate_pairs(lambda band: iter([hashes[band]]), NEAR.bands, ranks, ranks, 1 << 30)
    pieces = candidate_pairs(
        lambda band: iter([hashes[band, :70], hashes[band, 70:]]), NEAR.bands, ranks, ranks, 64 * 30
    )
    assert np.array_equal(whole, pieces)
    assert len(whole) >= 200 * 3 / 4
    some = candidate_pairs(lambda band: iter([hashes[band]]), NEAR.bands, ranks[:100], ranks, 1 << 30)
    assert some.max() < 100


def test_large_bucket_stays_linear() -> None:
    same = np.zeros(5000, np.uint64)
    ranks = np.arange(5000)
    pairs = candidate_pairs(lambda _: iter([same]), 1, ranks, ranks, 1 << 30)
    assert len(pairs) < 4 * 5000
    sets = np.arange(10, dtype=np.uint32)
    copies = near_copies(pairs, lambda _: sets, ranks, 0.8)
    assert len(copies.removed) == 4999
    assert set(copies.kept.tolist()) == {0}


def test_chains_do_not_remove_what_has_no_near_copy() -> None:
    sets = {0: np.arange(0, 10), 1: np.arange(1, 11), 2: np.arange(2, 12)}
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    copies = near_copies(pairs, lambda row: sets[row].astype(np.uint32), np.arange(3), 0.8)
    assert copies.removed.tolist() == [1]  # 2 is like 1 only, which goes


def test_pairs_in_both_directions_and_the_better_source(tmp_path: Path) -> None:
    forward = [
        {"src_lang": "en", "src_text": f"{words(i, 9)}", "tgt_lang": "de", "tgt_text": f"{words(i + 500, 9)}"}
        for i in range(30)
    ]
    back = [
        {
            "src_lang": "de",
            "src_text": row["tgt_text"].upper(),
            "tgt_lang": "en",
            "tgt_text": f" {row['src_text']}  !",
        }
        for row in forward[:10]
    ]
    swapped = [
        {"src_lang": "en", "src_text": row["tgt_text"], "tgt_lang": "de", "tgt_text": row["src_text"]}
        for row in forward[:5]
    ]
    first = write_jsonl(tmp_path / "first.jsonl", back)
    second = write_jsonl(tmp_path / "second.jsonl", forward + forward[20:] + swapped)
    sources = {"better": pair_source(first), "worse": pair_source(second)}
    build = build_at(tmp_path / "corpus", sources)
    build_corpus(build, "deduplicated")
    left = rows_of(build.root, "deduplicated")
    assert sum(row["source"] == "better" for row in left) == 10
    assert sum(row["source"] == "worse" for row in left) == 20 + 5
    assert len(list((build.root / "deduplicated/parallel").iterdir())) == 2


def test_templated_pairs(tmp_path: Path) -> None:
    rows = [
        {"src_lang": "en", "src_text": words(i, 9), "tgt_lang": "de", "tgt_text": "Bitte melden Sie sich an."}
        for i in range(20)
    ]
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    build = build_at(
        tmp_path / "corpus",
        {"s": pair_source(raw)},
        filters={"parallel": Thresholds(max_target_repeats=6, max_length_ratio=None)},
    )
    build_corpus(build, "deduplicated")
    assert len(rows_of(build.root, "deduplicated")) == 6
    keys = np.array([3, 3, 3, 1], np.uint64)
    assert over_used([keys], np.array([2, 1, 0, 3]), 2).tolist() == [0]


def test_paragraphs(tmp_path: Path) -> None:
    shared = "This paragraph stands in every one of the documents of this source, word for word."
    rows = [{"lang": "en", "text": f"{words(i, 20)}\n{shared}\n{words(i + 100, 20)}"} for i in range(5)]
    rows.append({"lang": "en", "text": f"{shared}\n{rows[0]['text'].split(chr(10))[0]}"})
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    build = build_at(
        tmp_path / "corpus", {"s": mono_source(raw)}, deduplication=Deduplication(paragraphs=True)
    )
    build_corpus(build, "deduplicated")
    left = rows_of(build.root, "deduplicated")
    assert sum(shared in row["text"] for row in left) == 1
    assert left[0]["text"] == rows[0]["text"]
    assert left[1]["text"] == rows[1]["text"].replace(f"\n{shared}", "")
    assert len(left) == 5


def test_pairs_beside_paragraphs_stay_whole_and_counted(tmp_path: Path) -> None:
    pairs = [
        {"src_lang": "en", "src_text": words(i, 9), "tgt_lang": "de", "tgt_text": words(i + 500, 9)}
        for i in range(3)
    ]
    raw = write_jsonl(tmp_path / "raw.jsonl", [*pairs, pairs[0]])
    build = build_at(
        tmp_path / "corpus", {"s": pair_source(raw)}, deduplication=Deduplication(paragraphs=True)
    )
    build_corpus(build, "deduplicated")
    left = rows_of(build.root, "deduplicated")
    assert [row["src_text"] for row in left] == [pair["src_text"] for pair in pairs]
    kept = [
        row
        for row in accounts_table(build.root).to_pylist()
        if (row["stage"], row["outcome"]) == ("deduplicated", "kept")
    ]
    assert [(row["documents"], row["tokens"]) for row in kept] == [(3, 3 * 18)]


def test_no_search_where_the_recipe_says_so(tmp_path: Path) -> None:
    text = words(1, 60)
    rows = [
        {"lang": "en", "text": text},
        {"lang": "en", "text": text},
        {"lang": "en", "text": f"{text} more"},
    ]
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    build = build_at(tmp_path / "corpus", {"s": mono_source(raw)}, deduplication=Deduplication(exact=False))
    build_corpus(build, "deduplicated")
    assert len(rows_of(build.root, "deduplicated")) == 3
    assert Corpus().deduplication.near is None
