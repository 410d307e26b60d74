"""The demo's benchmark is made of held-out translations, and its answers are right."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.tools.demo.mirror import write_mirror
from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark
from emma.tools.evaluation.benchmarks.items import build_items
from emma.tools.evaluation.benchmarks.stores import open_store


def _pairs(root: Path, language: str, count: int) -> None:
    rows = [
        {
            "src_text": f"word {n}",
            "tgt_text": f"{language} {n}",
            "split": "train" if n % 3 == 0 else "validation",
        }
        for n in range(count)
    ]
    rows += [
        {"src_text": "twice", "tgt_text": "a", "split": "validation"},
        {"src_text": "twice", "tgt_text": "b", "split": "validation"},
        {"src_text": "Same", "tgt_text": "same", "split": "validation"},
    ]
    folder = root / "split" / "parallel" / f"eng_Latn-{language}"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-00000.parquet")


def test_items_are_held_out_and_have_one_right_answer(tmp_path: Path) -> None:
    _pairs(tmp_path, "deu_Latn", 60)
    _pairs(tmp_path, "fra_Latn", 15)
    assert write_mirror(tmp_path, tmp_path / "mirror") == {"deu_Latn": 24}, "10 held-out pairs are too few"
    rows = [
        json.loads(line) for line in (tmp_path / "mirror/demo_pairs/deu_Latn.jsonl").read_text().splitlines()
    ]
    for row in rows:
        number = int(row["source"].removeprefix("word "))
        assert number % 3, "held out"
        choices = [row[f"choice{n}"] for n in (1, 2, 3, 4)]
        assert len(set(choices)) == 4 and choices[row["answer"]] == f"deu_Latn {number}"
    assert len({row["answer"] for row in rows}) == 4
    items = build_items(get_benchmark("demo_translations"), "deu_Latn", open_store(tmp_path / "mirror"))
    assert items[0].prompt == f"[English]: {rows[0]['source']}\n[German]:"
    assert items[0].choices[items[0].gold or 0] == f"deu_Latn {rows[0]['source'].split()[1]}"


def test_a_corpus_without_enough_pairs_is_refused(tmp_path: Path) -> None:
    _pairs(tmp_path, "fra_Latn", 9)
    with pytest.raises(UserError, match="no language has 12 held-out pairs"):
        write_mirror(tmp_path, tmp_path / "mirror")
    assert not (tmp_path / "mirror" / "demo_pairs").exists()


def test_it_is_nobody_elses_benchmark() -> None:
    assert "demo_translations" not in benchmark_names()
    assert "demo_translations" in benchmark_names(on_demand=True)
