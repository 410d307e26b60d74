from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from emma.recipes.schema.corpus import Corpus, Deduplication, NearDuplicates, Thresholds
from emma.tools.corpus.build import build_corpus, plan_build, stages_of, totals
from emma.tools.corpus.duplicates.bits import Bits
from emma.tools.corpus.duplicates.entries import BUCKETS, KINDS, Entries, Equal, plan_ranges, write_entries
from emma.tools.corpus.duplicates.equal import candidate_pairs
from emma.tools.corpus.duplicates.near import greedy
from emma.tools.corpus.duplicates.needs import needs_of
from emma.tools.corpus.duplicates.numbering import RUN, Numbering, number_runs
from emma.tools.corpus.minhash import bands, jaccard, shingle_sets, shingles_of
from emma.tools.corpus.runner import results_of, run_tasks
from emma.tools.corpus.stage import Build
from emma.tools.corpus.statistics import accounts_table
from emma.tools.corpus.verify import verify_corpus
from tests.tools.corpus.raw_text import (
    ARTICLE,
    build_at,
    contents,
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


TIGHT = 0.1
"""A `memory_gib` that leaves a task nothing beside its libraries: ranges, single hashes and messages are read in pieces."""


def numbered(rows: int, *, chunks: int = 1) -> Numbering:
    """Documents in chunks of one block and one run each."""
    run = np.array([(0, rows, 0, 0, 0)], RUN)
    return number_runs([run] * chunks, [[0]] * chunks)


def groups(
    folder: Path,
    hashes: Sequence[NDArray[np.uint64]],
    memory: int,
    kind: str = "bands",
    **columns: NDArray[Any],
) -> list[tuple[int, ...]]:
    """Ranks of equal entries, group by group, as a range of all hashes gives them."""
    numbering = numbered(len(hashes[0]), chunks=len(hashes))
    for chunk, values in enumerate(hashes):
        write_entries(folder, chunk, 0, kind, hash=values, row=np.arange(len(values)), **columns)
    found: dict[int, list[int]] = {}
    for equal in Entries(folder, kind, numbering, None, memory).groups(0, BUCKETS):
        new = slice(equal.old, None)
        for rank, first, position in zip(equal.rank[new], equal.first[new], equal.position[new], strict=True):
            members = found.setdefault(int(first), [])
            assert position == len(members)
            members.append(int(rank))
    return sorted(tuple(members) for members in found.values())


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_equal_hashes_come_together_in_any_memory(memory: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # Few values, many of each: every range, and every single hash, is larger than what fits.
    values = np.append(generator.integers(0, 1 << 64, 9, np.uint64), np.uint64([0, (1 << 64) - 1]))
    hashes = [generator.choice(values, 300) for _ in range(3)]
    every = np.concatenate(hashes)
    assert groups(tmp_path, hashes, memory) == sorted(
        tuple(np.flatnonzero(every == value).tolist()) for value in np.unique(every)
    )


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_equal_halves_are_not_equal_keys(memory: int, tmp_path: Path) -> None:
    same, second = np.zeros(60, np.uint64), np.arange(60, dtype=np.uint64) % np.uint64(3)
    found = groups(tmp_path, [same], memory, "keys", second=second)
    assert found == [tuple(range(start, 60, 3)) for start in range(3)]


def test_ranges_cover_every_bucket_once() -> None:
    counts = np.random.default_rng(1).integers(0, 50, BUCKETS)
    counts[77] = 100_000
    for memory in (0, 1 << 14, 1 << 30):
        ranges = plan_ranges(counts, memory)
        covered = [bucket for start, stop in ranges for bucket in range(start, stop)]
        assert covered == sorted(set(covered))
        assert not counts[np.setdiff1d(np.arange(BUCKETS), covered)].any()
    assert plan_ranges(np.zeros(BUCKETS, np.int64), 1 << 30) == []


def test_ranks_follow_sources_then_places() -> None:
    one = np.array([(0, 3, 1, 0, 0), (3, 2, 0, 0, 0), (5, 2, 1, 1, 1)], RUN)
    other = np.array([(0, 4, 0, 0, 0)], RUN)
    numbering = number_runs([one, other], [[0, 7], [5]])
    ranks = [numbering.ranks(0, np.arange(7)).tolist(), numbering.ranks(1, np.arange(4)).tolist()]
    assert ranks == [[6, 7, 8, 0, 1, 9, 10], [2, 3, 4, 5]]
    chunks, rows = numbering.places(np.arange(11))
    assert list(zip(chunks.tolist(), rows.tolist(), strict=True)) == [
        (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (0, 0), (0, 1), (0, 2), (0, 5), (0, 6),
    ]  # fmt: skip
    assert numbering.limit[numbering.run_of(np.array([2, 9, 0]))].tolist() == [5, 7, 0]


@pytest.mark.parametrize("memory", [1, 3, 100])
def test_bits_in_memory_and_in_pages(memory: int, tmp_path: Path) -> None:
    chosen = np.random.default_rng(2).permutation(1001)[:400]
    with Bits(1001, memory, tmp_path) as bits:
        for part in np.array_split(chosen, 7):
            bits.set(part)
        assert np.array_equal(np.flatnonzero(bits.get(np.arange(1001))), np.sort(chosen))


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


def brute_force(texts: Sequence[str]) -> set[str]:
    """What stays of one language's texts: in their order, one goes if it shares a band and enough shingles with one that
    stays."""
    shingles = shingles_of(texts, NEAR, "Latn")
    hashes = bands(shingles, NEAR)
    values, offsets = shingle_sets(shingles)
    sets = [values[start:stop] for start, stop in itertools.pairwise(offsets)]
    stay: list[int] = []
    for row in range(len(texts)):
        if not any(
            (hashes[row] == hashes[one]).any() and jaccard(sets[row], sets[one]) >= 0.8 for one in stay
        ):
            stay.append(row)
    return {texts[row] for row in stay}


def families() -> list[str]:
    """Texts of one language in families of up to eight near copies, some chained: alike to a neighbour only."""
    texts = []
    for family in range(30):
        text = words(family, 90)
        for member in range(family % 8 + 1):
            texts.append(text)
            text = variant(text, 1 + family % 3, 100 * family + member)
    random.Random(3).shuffle(texts)
    return texts


def test_what_stays_is_what_comparing_all_leaves(tmp_path: Path) -> None:
    texts = families()
    raw = write_jsonl(tmp_path / "raw.jsonl", ({"lang": "en", "text": text} for text in texts))
    build = build_at(tmp_path / "corpus", {"s": mono_source(raw)}, deduplication=Deduplication(near=NEAR))
    build_corpus(build, "deduplicated")
    left = {row["text"] for row in rows_of(build.root, "deduplicated")}
    assert left == brute_force(texts)
    assert 30 < len(left) < len(texts) - 30


def everything(folder: Path, root: Path, workers: int = 1, **settings: Any) -> Build:
    """A corpus with copies of all sorts, and more equal hashes of each kind than fit into a tight memory."""
    footer = "This line stands at the end of each page of the site, whatever it is about."
    rows = [{"lang": "en", "text": f"{text}\n{footer}"} for text in families()]
    rows += rows[::3]
    rows += [{"lang": "fr", "text": f"{words(1, 80)} {number % 40}"} for number in range(60)]
    first = write_jsonl(folder / "first.jsonl", rows[100:])
    second = write_jsonl(folder / "second.jsonl", rows[:130])
    pairs = [
        {
            "src_lang": "en",
            "src_text": words(i % 30, 9),
            "tgt_lang": "de",
            "tgt_text": "Bitte melden Sie sich an.",
        }
        for i in range(40)
    ]
    back = [
        {"src_lang": "de", "src_text": row["tgt_text"], "tgt_lang": "en", "tgt_text": row["src_text"]}
        for row in pairs[20:]
    ]
    bilingual = write_jsonl(folder / "pairs.jsonl", pairs + back)
    return build_at(
        root,
        {"second": mono_source(second), "first": mono_source(first), "pairs": pair_source(bilingual)},
        workers,
        filters={
            "parallel": Thresholds(max_target_repeats=20, max_length_ratio=None),
            "monolingual": Thresholds(max_repeated_ngram_share=None),
        },
        deduplication=Deduplication(near=NEAR, paragraphs=True, counts=True),
        part_megabytes=0.01,
        **settings,
    )


def test_same_bytes_in_any_memory_with_any_number_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = everything(tmp_path, tmp_path / "whole")
    build_corpus(whole)
    tight = everything(tmp_path, tmp_path / "tight", memory_gib=TIGHT)
    build_corpus(tight)
    assert contents(tight.root) == contents(whole.root)
    # Many small chunks, blocks and ranges.
    monkeypatch.setattr("emma.tools.corpus.deduplicate._CHUNK_MEGABYTES", 0.01)
    monkeypatch.setattr("emma.tools.corpus.duplicates.hashing._BLOCK_ENTRIES", 50)
    monkeypatch.setattr("emma.tools.corpus.duplicates.entries._AT_ONCE", 40)
    many = everything(tmp_path, tmp_path / "many")
    build_corpus(many)
    texts = [[row for row in rows_of(build.root, "split")] for build in (whole, many)]
    assert texts[0] == texts[1]
    clusters = [
        sorted(
            pq.read_table(build.root / "deduplicated/clusters").to_pylist(), key=lambda row: row["removed_id"]
        )
        for build in (whole, many)
    ]
    assert clusters[0] == clusters[1]
    assert accounts_table(whole.root).to_pylist() == accounts_table(many.root).to_pylist()
    removed = totals(whole)["deduplicated"]["removed_by"]
    assert set(removed) == {"exact_duplicate", "near_duplicate", "templated"}
    assert verify_corpus(whole, contents=True) == []


def test_killed_in_any_phase_and_resumed(tmp_path: Path) -> None:
    whole = everything(tmp_path, tmp_path / "whole")
    build_corpus(whole)
    build = everything(tmp_path, tmp_path / "killed")
    build_corpus(build, "filtered")
    *_, stage = stages_of(build, "deduplicated")
    stage.begin()
    results: dict[str, Any] = {}
    for phase in stage.phases:
        tasks = phase.plan(stage, results)
        run_tasks(stage.work / phase.name, tasks[: len(tasks) // 2 + 1], workers=1, label="")
        # What a killed task leaves is not looked at.
        for partial in (stage.work / "hashes").glob("*"):
            partial.with_name(f".{partial.name}.1.partial").write_bytes(b"half")
            break
        stage = list(stages_of(build, "deduplicated"))[-1]
        stage.begin()
        run_tasks(stage.work / phase.name, tasks, workers=1, label="")
        results[phase.name] = results_of(stage.work / phase.name, tasks)
    build_corpus(build)
    assert contents(build.root) == contents(whole.root)


def test_copies_count_what_each_document_stands_for(tmp_path: Path) -> None:
    build = everything(tmp_path, tmp_path / "corpus")
    build_corpus(build)
    rows = rows_of(build.root, "split")
    counts = totals(build)["deduplicated"]
    removed = counts["removed_by"]
    left = {row["id"]: row["copies"] for row in rows}
    # Each copy counts once, in the document that stays: also a copy of a near copy that goes itself.
    assert sum(left.values()) == counts["kept"] + removed["exact_duplicate"] + removed["near_duplicate"]
    kept_of = {
        row["removed_id"]: row["kept_id"]
        for row in pq.read_table(build.root / "deduplicated/clusters").to_pylist()
    }
    expected = dict.fromkeys(left, 1)
    for identifier in kept_of:
        while identifier in kept_of:
            identifier = kept_of[identifier]
        expected[identifier] += 1
    assert left == expected
    assert max(left.values()) > 3


def test_large_groups_stay_linear_and_chains_keep_what_has_no_copy() -> None:
    ranks = np.arange(5000)
    same = Equal(ranks, ranks, np.full(5000, 5000), np.zeros(5000, np.int64))
    assert len(candidate_pairs(same)) < 4 * 5000
    eight = Equal(ranks[:8], ranks[:8], np.full(8, 8), np.zeros(8, np.int64))
    assert {tuple(pair) for pair in candidate_pairs(eight).tolist()} == {
        (one, other) for other in range(8) for one in range(other)
    }


def test_what_is_like_only_a_removed_one_stays(tmp_path: Path) -> None:
    kind = [("rank", np.int64), ("better", np.int64), ("similarity", np.float64)]
    pairs = np.array([(1, 0, 0.9), (2, 1, 0.8), (5, 2, 0.9), (5, 4, 1.0), (6, 5, 1.0)], kind)
    for batches in ([pairs], [pairs[:1], pairs[1:2], pairs[2:]]):
        with Bits(8, 100, tmp_path) as gone:
            found = [greedy(batch, gone) for batch in batches]
        chosen = np.concatenate(found)
        # 2 is like 1 only, which goes; 5 goes for 2, the best of those that stay; 6 is like 5 only.
        assert chosen[["rank", "better"]].tolist() == [(1, 0), (5, 2)]


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


def test_only_one_language_and_kind_is_compared_with_itself(tmp_path: Path) -> None:
    """Equal text of another language or kind is no copy: neither exact, nor near, nor its paragraphs."""
    text = f"{words(5, 60)}\n{words(6, 60)}"
    rows = [{"lang": language, "text": text} for language in ("en", "fr", "en")]
    raw = write_jsonl(tmp_path / "raw.jsonl", [*rows, {"lang": "fr", "text": f"{text} more"}])
    book = mono_source(raw).model_copy(update={"kind": "books"})
    build = build_at(
        tmp_path / "corpus",
        {"web": mono_source(raw), "library": book},
        filters={"books": Thresholds(min_characters=None)},
        deduplication=Deduplication(near=NEAR, paragraphs=True),
    )
    build_corpus(build, "deduplicated")
    assert totals(build)["deduplicated"]["removed_by"] == {"exact_duplicate": 2, "near_duplicate": 2}
    left = rows_of(build.root, "deduplicated")
    assert [row["text"] for row in left] == [text] * 4
    assert {(row["source"], row["language"]) for row in left} == {
        (source, language) for source in ("web", "library") for language in ("eng_Latn", "fra_Latn")
    }


def test_what_the_stage_takes_is_known_from_the_counts(tmp_path: Path) -> None:
    build = everything(tmp_path, tmp_path / "corpus")
    assert needs_of(build) is None
    assert "deduplication" not in plan_build(build)
    build_corpus(build, "filtered")
    needs = needs_of(build)
    assert needs is not None
    kept = totals(build)["filtered"]["kept"]
    assert needs.documents == kept
    assert needs.memory == 4 << 30
    pairs = sum(row["kind"] == "parallel" for row in accounts_table(build.root).to_pylist())
    assert pairs
    stage = list(stages_of(build, "deduplicated"))[-1]
    stage.begin()
    results: dict[str, Any] = {}
    for phase in stage.phases[:2]:
        tasks = phase.plan(stage, results)
        run_tasks(stage.work / phase.name, tasks, workers=1, label="")
        results[phase.name] = results_of(stage.work / phase.name, tasks)
    entries = results["number"][0]["entries"]
    assert entries["keys"] == kept
    assert needs.ranges == 1
    # All of these texts are long enough to be searched; paragraphs are not foreseen.
    foreseen = sum(count * KINDS[kind].itemsize for kind, count in entries.items() if kind != "paragraphs")
    assert needs.disk == foreseen
    assert plan_build(build)["deduplication"] == needs.to_dict()
