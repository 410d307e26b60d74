from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.recipes.schema.data import Category, Mix, MixComponent
from emma.tools.evaluation.groups import language_facts, order_categories, read_seen


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_plan_counts_before_statistics(tmp_path: Path) -> None:
    statistics = [
        {"stage": stage, "kind": kind, "language": language, "category": category}
        for stage, kind, language, category in (
            ("split", "monolingual", "deu_Latn", "high"),
            ("split", "monolingual", "yor_Latn", "low"),
            ("integrated", "parallel", "deu_Latn-yor_Latn", "high"),
            ("split", "parallel", "deu_Latn-yor_Latn", "medium"),
            ("split", "code", "python", ""),
        )
    ]
    write_rows(tmp_path / "corpus" / "statistics" / "statistics.parquet", statistics)
    plan = [
        {"component": "monolingual", "language": "deu_Latn", "category": "medium-high", "tokens": 10},
        {"component": "bilingual", "language": "deu_Latn-yor_Latn", "category": None, "tokens": 0},
    ]
    write_rows(tmp_path / "mix" / "plan.parquet", plan)
    facts = language_facts(tmp_path / "mix", tmp_path / "corpus", frozenset({"deu_Latn"}))
    assert facts.category_of("monolingual", "deu_Latn") == "medium-high"
    # Not planned, and the statistics' categories have other thresholds than the plan's.
    assert facts.category_of("monolingual", "yor_Latn") is None
    assert facts.category_of("bilingual", "deu_Latn-yor_Latn") == "medium"
    assert facts.category_of("code", "python") is None
    assert facts.categories == ("medium-high", "medium")
    assert facts.is_trained("monolingual", "deu_Latn") is True
    assert facts.is_trained("monolingual", "yor_Latn") is False
    assert facts.is_trained("parallel", "deu_Latn-yor_Latn") is False
    assert facts.is_seen("deu_Latn") is True
    assert facts.is_seen("deu_Latn-yor_Latn") is False


def test_statistics_alone(tmp_path: Path) -> None:
    row = {"stage": "split", "kind": "monolingual", "language": "yor_Latn", "category": "low"}
    write_rows(tmp_path / "statistics" / "statistics.parquet", [row])
    facts = language_facts(None, tmp_path, None)
    assert facts.category_of("monolingual", "yor_Latn") == "low"
    assert facts.is_trained("monolingual", "yor_Latn") is None


def test_nothing_known(tmp_path: Path) -> None:
    facts = language_facts(None, tmp_path, None)
    assert facts.category_of("monolingual", "deu_Latn") is None
    assert facts.is_trained("monolingual", "deu_Latn") is None
    assert facts.is_seen("deu_Latn") is None


def test_thresholds_order_categories() -> None:
    categories = {
        "small": Category(at_least=10),
        "big": Category(at_least=1000),
        "mid": Category(at_least=100),
    }
    mix = Mix(components={"monolingual": MixComponent(share=1, categories=categories)})
    assert order_categories(["small", "mid", "big", "mid"], mix) == ("big", "mid", "small")
    assert order_categories(["low", "medium_high", "high"]) == ("high", "medium_high", "low")


def test_seen_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"seen": ["eng_Latn", "deu_Latn"]}')
    (tmp_path / "b.txt").write_text("# comment\neng_Latn\n\ndeu_Latn\n")
    assert read_seen(tmp_path / "a.json") == read_seen(tmp_path / "b.txt") == {"eng_Latn", "deu_Latn"}
    (tmp_path / "c.json").write_text('{"languages": 3}')
    with pytest.raises(UserError, match=r"c\.json: the content must be"):
        read_seen(tmp_path / "c.json")
    with pytest.raises(UserError, match="no such file"):
        read_seen(tmp_path / "d.txt")


def test_damaged_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"plan\.parquet: cannot be read"):
        language_facts(tmp_path, None, None)
