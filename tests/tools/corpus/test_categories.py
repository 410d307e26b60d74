from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.corpus.categories import category
from emma.tools.corpus.statistics import compare, published


@pytest.mark.parametrize(
    ("kind", "tokens", "name"),
    [
        ("monolingual", 1_000_000_000, "high"),
        ("monolingual", 999_999_999, "medium-high"),
        ("monolingual", 100_000, "low"),
        ("monolingual", 99_999, "unseen"),
        ("monolingual", 0, "unseen"),
        ("parallel", 10_000_000_000, "very-high"),
        ("parallel", 500_000_000, "medium-high"),
        ("parallel", 499_999_999, "medium"),
        ("parallel", 999_999, "very-low"),
    ],
)
def test_thresholds(kind: str, tokens: int, name: str) -> None:
    assert category(kind, tokens) == name


def test_published_statistics(tmp_path: Path) -> None:
    path = tmp_path / "mono.csv"
    path.write_text("lang_code,num_texts,num_tokens,num_segments\neng_Latn,5,3002029817,9\nabc_Latn,1,17,1\n")
    other = published(path)
    assert other.by_category()["high"] == {"languages": 1, "tokens": 3_002_029_817, "texts": 5}
    rows = compare([{"language": "eng_Latn", "tokens": 10, "documents": 2}], other)
    assert [(row["language"], row["tokens"], row["published_category"]) for row in rows] == [
        ("abc_Latn", None, "unseen"),
        ("eng_Latn", 10, "high"),
    ]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("lang_pair,src_num_texts,tot_num_tokens\neng_Latn-fra_Latn,7,30889000000\n")
    assert published(pairs).by_category()["very-high"]["languages"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "neither"),
        ("lang_code,num_texts,num_tokens\neng,x,y\n", "not an integer"),
        (None, "No such file"),
    ],
)
def test_other_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        published(path)
