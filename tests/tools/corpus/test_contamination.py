from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.recipes.schema.corpus import Decontamination
from emma.tools.corpus.build import build_corpus, totals
from emma.tools.corpus.contamination import BenchmarkIndex, benchmark_files, benchmark_texts
from emma.tools.corpus.overlap import report_overlap
from tests.tools.corpus.raw_text import ARTICLE, build_at, documents, mono_source, rows_of, words, write_jsonl

QUESTION = (
    "Which of the rivers that rise in these mountains reaches the northern sea before the end of the year?"
)


def benchmarks(folder: Path) -> Path:
    """A folder with a benchmark in each format."""
    folder.mkdir()
    write_jsonl(
        folder / "a.jsonl.gz", [{"question": QUESTION, "choices": ["one", ARTICLE["zh"]]}], compress=True
    )
    (folder / "b.json").write_text(json.dumps({"rows": [{"text": words(1, 30)}]}))
    (folder / "c.tsv").write_text(f"{words(2, 30)}\t1\n")
    (folder / "d.txt").write_text(words(3, 30))
    (folder / "e.csv.gz").write_bytes(gzip.compress(words(4, 30).encode()))
    pq.write_table(pa.table({"passage": [words(5, 30)], "n": [1]}), folder / "f.parquet")
    return folder


def test_every_text_field_of_every_format_counts(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path / "benchmarks")
    settings = Decontamination(benchmarks=str(folder))
    texts = {text for path, _ in benchmark_files(settings) for text in benchmark_texts(Path(path))}
    assert {QUESTION, ARTICLE["zh"], *(words(seed, 30) for seed in range(1, 6))} <= texts


def test_overlaps() -> None:
    settings = Decontamination(benchmarks="")
    index = BenchmarkIndex.of(settings, [QUESTION, ARTICLE["th"], "Yes", words(1, 8)])
    inside = f"{words(7, 40)} {QUESTION.upper()} {words(8, 40)}"
    part = " ".join(QUESTION.split()[:12])
    found = index.overlaps([inside, part, words(9, 80), "Yes", words(1, 8), f"{words(1, 8)} more"], "Latn")
    assert (found > 0).tolist() == [True, False, False, False, True, False]
    assert index.overlaps([ARTICLE["ja"] + ARTICLE["th"]], "Thai")[0] > 0
    assert index.overlaps([ARTICLE["ja"]], "Jpan")[0] == 0


def test_the_build_removes_or_reports(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path / "benchmarks")
    rows = [*documents(3, ["en", "de"]), {"lang": "en", "text": f"{words(7, 40)} {QUESTION}"}]
    rows.append({"lang": "en", "text": words(5, 30)})
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    build = build_at(
        tmp_path / "removed", {"s": mono_source(raw)}, decontamination=Decontamination(benchmarks=str(folder))
    )
    build_corpus(build)
    assert totals(build)["filtered"]["removed_by"] == {"contaminated": 2}
    assert not any(QUESTION in row["text"] for row in rows_of(build.root, "split"))
    assert report_overlap(build, None, "split")["contaminated"] == 0

    reported = build_at(
        tmp_path / "kept",
        {"s": mono_source(raw)},
        decontamination=Decontamination(benchmarks=str(folder), action="report"),
    )
    build_corpus(reported)
    assert totals(reported)["filtered"]["removed_by"] == {}
    found = report_overlap(reported, folder, "split")
    assert (found["documents"], found["contaminated"]) == (8, 2)
    examples = pq.read_table(found["examples"]).to_pylist()
    assert sorted(row["id"] for row in examples) == ["s/raw.jsonl#7", "s/raw.jsonl#8"]


def test_no_benchmarks(tmp_path: Path) -> None:
    build = build_at(
        tmp_path / "c", {"s": mono_source(write_jsonl(tmp_path / "raw.jsonl", documents(1, ["en"])))}
    )
    build_corpus(build)
    with pytest.raises(UserError, match="--benchmarks"):
        report_overlap(build, None, "split")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of evaluation texts"):
        report_overlap(build, tmp_path / "empty", "split")
    (tmp_path / "empty" / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: cannot be read"):
        report_overlap(build, tmp_path / "empty", "split")
