from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from emma.recipes.schema.corpus import Deduplication, Split, Thresholds
from emma.tools.corpus.build import build_corpus
from emma.tools.corpus.split import Choices, decide, document_hashes
from emma.tools.corpus.stage import Build
from tests.tools.corpus.raw_text import build_at, mono_source, pair_source, rows_of, words, write_jsonl

OFF: dict[str, Any] = {"filters": {"monolingual": Thresholds(), "parallel": Thresholds()}}


def split_of(root: Path, texts: list[str], **settings: Any) -> dict[str, str]:
    """Text → split, of a build of English documents."""
    raw = write_jsonl(root / "raw" / f"{len(texts)}.jsonl", ({"lang": "en", "text": text} for text in texts))
    build = build_at(root / "corpus", {"s": mono_source(raw)}, split=Split(**settings), **OFF)
    build_corpus(build)
    return {row["text"]: row["split"] for row in rows_of(root / "corpus", "split")}


def test_growth_moves_no_document(tmp_path: Path) -> None:
    texts = [words(seed, 12) for seed in range(1200)]
    small = split_of(tmp_path / "a", texts[:300], share=0.1, cap=20)
    large = split_of(tmp_path / "b", texts, share=0.1, cap=20)
    both = small.keys() & large.keys()
    assert len(both) > 200
    assert all(small[text] == large[text] for text in both)
    assert 10 <= sum(split == "validation" for split in small.values()) <= 20
    assert sum(split == "validation" for split in large.values()) == 20
    # What is beyond the cap trains in neither.
    assert len(large) < len(texts)
    assert not any(large.get(text) == "train" for text in texts[:300] if small.get(text) != "train")


def test_growth_in_place_keeps_what_floors_chose(tmp_path: Path) -> None:
    texts = [words(seed, 12) for seed in range(400)]
    before = split_of(tmp_path, texts[:6], share=0.02, floor=2)
    assert sorted(before.values()) == ["train"] * 4 + ["validation"] * 2
    after = split_of(tmp_path, texts, share=0.02, floor=2)
    assert {text: after[text] for text in before} == before


def test_a_single_document_trains(tmp_path: Path) -> None:
    texts = [words(seed, 12) for seed in range(40)]
    for text in texts[:8]:
        assert list(split_of(tmp_path / text[:5], [text], share=0.5).values()) == ["train"]
    few = split_of(tmp_path, texts[:4], share=0.9, min_train=3)
    assert sum(split == "train" for split in few.values()) >= 3


def test_equal_hashes_are_not_parted_by_the_cap(tmp_path: Path) -> None:
    """Copies (of a corpus that keeps them) share a hash: a cap that falls among them takes none of them."""
    texts = [words(seed, 12) for seed in range(40)]
    hashes = document_hashes([texts], "monolingual")
    order = [texts[place] for place in hashes.argsort()]
    raw = write_jsonl(tmp_path / "raw.jsonl", ({"lang": "en", "text": text} for text in texts * 3))
    for cap, whole in ((6, 2), (7, 2), (8, 2), (9, 3)):
        build = build_at(
            tmp_path / f"corpus-{cap}",
            {"s": mono_source(raw)},
            split=Split(share=0.5, cap=cap),
            deduplication=Deduplication(exact=False),
            **OFF,
        )
        build_corpus(build)
        found = Counter((row["text"], row["split"]) for row in rows_of(build.root, "split"))
        held_out = {text: count for (text, split), count in found.items() if split == "validation"}
        assert held_out == dict.fromkeys(order[:whole], 3)
        trained = {text: count for (text, split), count in found.items() if split == "train"}
        assert set(trained.values()) == {3}
        # What the cap leaves out of validation trains neither, or growth would move it.
        assert order[whole] not in trained


def test_shares_of_single_languages_and_no_validation(tmp_path: Path) -> None:
    texts = [words(seed, 12) for seed in range(200)]
    for number, settings in enumerate(
        [{"share": 0.5, "shares": {"eng_Latn": 0.0}}, {"share": 0.5, "cap": 0}, {"share": 0.0}]
    ):
        found = split_of(tmp_path / str(number), texts, **settings)
        assert list(found.values()) == ["train"] * 200


def test_validation_text_is_no_side_of_a_training_pair(tmp_path: Path) -> None:
    english = [words(seed, 12) for seed in range(300)]
    german = [words(seed, 12) for seed in range(1000, 1300)]
    mono = write_jsonl(tmp_path / "mono.jsonl", ({"lang": "en", "text": text} for text in english))
    pairs = write_jsonl(
        tmp_path / "pairs.jsonl",
        (
            {"src_lang": "de", "src_text": de, "tgt_lang": "en", "tgt_text": en}
            for en, de in zip(english, german, strict=True)
        ),
    )
    build = build_at(
        tmp_path / "corpus", {"m": mono_source(mono), "p": pair_source(pairs)}, split=Split(share=0.1), **OFF
    )
    build_corpus(build)
    held_out = {r["text"] for r in rows_of(build.root, "split", "monolingual") if r["split"] == "validation"}
    trained = {r["tgt_text"] for r in rows_of(build.root, "split", "parallel") if r["split"] == "train"}
    assert len(held_out) > 10
    assert len(trained) > 150
    assert not held_out & trained


def test_equal_hashes_of_pairs_are_not_parted_by_the_cap(tmp_path: Path) -> None:
    """Pairs that share a side have equal hashes where that side's is the lower one."""
    pairs = write_jsonl(
        tmp_path / "pairs.jsonl",
        (
            {"src_lang": "de", "src_text": words(1000 + number, 12), "tgt_lang": "en", "tgt_text": english}
            for number, english in enumerate(words(number // 2, 12) for number in range(120))
        ),
    )

    def build(**settings: Any) -> Build:
        return build_at(tmp_path / "corpus", {"p": pair_source(pairs)}, split=Split(**settings), **OFF)

    def hashes_of(stage: str, split: str | None = None) -> list[int]:
        rows = [r for r in rows_of(tmp_path / "corpus", stage) if split is None or r["split"] == split]
        texts = [[row[name] for row in rows] for name in ("src_text", "tgt_text")]
        return sorted(document_hashes(texts, "parallel").tolist())

    build_corpus(build(), "deduplicated")
    hashes = hashes_of("deduplicated")
    cap = next(n for n in range(10, len(hashes)) if hashes[n - 1] == hashes[n])
    build_corpus(build(share=0.9, cap=cap))
    assert hashes_of("split", "validation") == hashes[: cap - 1], "the two at the cap are both beyond it"
    assert not set(hashes_of("split", "train")) & set(hashes[: cap + 1])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match=r"shares\.eng_Latn"):
        Split(shares={"eng_Latn": share})


def test_the_cap_holds_over_all_parts_of_a_language() -> None:
    """Each part gives its own lowest hashes."""
    parts = [
        {"kind": "monolingual", "language": "eng_Latn", "rows": 10, "lowest": lowest, "pinned": []}
        for lowest in ([1, 3, 5], [2, 4, 6])
    ]
    (cut,) = decide(Split(share=0.1, cap=2, floor=0), [parts], Choices(set(), {})).values()
    assert cut.cap == 2, "the hashes 1 and 2 validate"
