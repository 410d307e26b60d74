"""A corpus release holds every document once, in its split, and can be interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from huggingface_hub import DatasetCard

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, sha256_file, write_json
from emma.base.manifest import Manifest
from emma.commands.release import group
from emma.tools.corpus.release.build import write_corpus_release
from emma.tools.corpus.release.source import open_corpus
from tests.tools.corpus.raw_text import rows_of


def released_rows(folder: Path, split: str, kind: str = "*", language: str = "*") -> list[dict[str, Any]]:
    """All rows of a split of a release."""
    paths = sorted(folder.glob(f"data/{kind}/{language}/{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file except the manifest, which holds times, and the list with the manifest's
    checksum."""
    names = {"manifest.json", "SHA256SUMS"}
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in names
    }


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_document_is_there_once_on_its_side(corpus: Path, released_corpus: Path, split: str) -> None:
    for kind in ("monolingual", "parallel", "code"):
        expected = [row for row in rows_of(corpus, "split", kind) if row.pop("split") == split]
        found = released_rows(released_corpus, split, kind)
        assert expected
        assert sorted(found, key=lambda row: row["id"]) == sorted(expected, key=lambda row: row["id"])


def test_files_by_language_of_bounded_size(corpus: Path, released_corpus: Path) -> None:
    parts = list((corpus / "split/monolingual/deu_Latn").glob("*.parquet"))
    shards = sorted(path.name for path in (released_corpus / "data/monolingual/deu_Latn").iterdir())
    assert len(parts) > len(shards) - 1 > 1
    assert shards == [f"train-{i:05d}.parquet" for i in range(len(shards) - 1)] + ["validation-00000.parquet"]
    manifest = Manifest.read(released_corpus)
    assert manifest.check_outputs(released_corpus, contents=True) == []
    assert manifest.stage == "release.corpus"
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=released_corpus, check=False
    )
    assert done.returncode == 0


def test_tables_and_card(corpus: Path, released_corpus: Path) -> None:
    card = DatasetCard.load(released_corpus / "README.md")
    data = card.data.to_dict()
    assert data["license"] == ["apache-2.0", "cc0-1.0", "mit", "odc-by"]
    assert data["language"] == ["arb", "cmn", "de", "en"]
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["text-generation", "translation"]
    configurations = {entry["config_name"]: entry for entry in data["configs"]}
    assert configurations["monolingual"]["default"] is True
    assert {"monolingual-cmn_Hans", "parallel-deu_Latn-eng_Latn", "code-python"} <= set(configurations)
    assert configurations["monolingual-deu_Latn"]["data_files"] == [
        {"split": split, "path": f"data/monolingual/deu_Latn/{split}-*.parquet"}
        for split in ("train", "validation")
    ]
    german = [row for row in rows_of(corpus, "split", "monolingual", "deu_Latn")]
    characters = sum(len(row["text"]) for row in german)
    validation = sum(row["split"] == "validation" for row in german)
    line = next(row for row in _table(released_corpus / "statistics.csv") if row["language"] == "deu_Latn")
    assert (int(line["train"]), int(line["validation"])) == (len(german) - validation, validation)
    assert int(line["characters"]) == characters
    assert int(line["bytes"]) == sum(len(row["text"].encode()) for row in german)
    assert line["name"] == "German"
    assert f"| deu_Latn | German | {len(german) - validation} | {validation} |" in card.text
    licenses = {(row["source"], row["license"]): row for row in _table(released_corpus / "licenses.csv")}
    assert set(licenses) == {
        ("web", "CC0-1.0"),
        ("news", "ODC-By-1.0"),
        ("europarl", "CC0-1.0"),
        ("snippets", "MIT OR Apache-2.0"),
    }
    rows = rows_of(corpus, "split", "monolingual")
    assert int(licenses["news", "ODC-By-1.0"]["documents"]) == sum(row["source"] == "news" for row in rows)
    assert "| news | monolingual | ODC-By-1.0 |" in card.text
    assert "| deduplicated |" in card.text


def _table(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_configuration_loads(released_corpus: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, kind, language in (
        ("monolingual-arb_Arab", "monolingual", "arb_Arab"),
        ("monolingual", "monolingual", "*"),
        ("parallel-deu_Latn-eng_Latn", "parallel", "deu_Latn-eng_Latn"),
    ):
        loaded = datasets.load_dataset(str(released_corpus), name, cache_dir=str(tmp_path))
        for split in ("train", "validation"):
            assert list(loaded[split]["id"]) == [
                row["id"] for row in released_rows(released_corpus, split, kind, language)
            ]


def test_command_with_processes_gives_the_same_bytes(
    corpus: Path, released_corpus: Path, tmp_path: Path
) -> None:
    line = ["corpus", str(corpus), str(tmp_path / "out"), "--name", "team/test-corpus", "--json"]
    line += ["--shard-size", "0.000009", "--workers", "2"]
    plan = CliRunner().invoke(group, [*line, "--dry-run"], catch_exceptions=False)
    assert json.loads(plan.stdout)["kinds"] == {"code": 1, "monolingual": 4, "parallel": 1}
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(group, line, catch_exceptions=False)
    assert json.loads(done.stdout)["documents"] == len(rows_of(corpus, "split"))
    assert contents(tmp_path / "out") == contents(released_corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = CliRunner().invoke(group, line)
    assert "--overwrite" in str(again.exception)


_KILLED = """
import os, signal, sys
from pathlib import Path
import emma.tools.corpus.release.build as build
from emma.tools.corpus.release.source import open_corpus
real, done = build.write_shard, []
def write(*arguments):
    if len(done) == 3:
        os.kill(os.getpid(), signal.{signal})
    done.append(1)
    return real(*arguments)
build.write_shard = write
build.write_corpus_release(open_corpus(sys.argv[1]), Path(sys.argv[2]), name="team/test-corpus", shard_bytes=9_000)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_continues_after_a_kill(
    corpus: Path, released_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    script = _KILLED.replace("{signal}", name)
    environment = {**os.environ, "EMMA_PROGRESS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(corpus), str(tmp_path / "out")], env=environment, check=False
    )
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("train-*.parquet")}
    assert finished
    from emma.tools.corpus.release import build

    calls: list[str] = []
    real = build.write_shard

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[-1].name)
        return real(*arguments)

    monkeypatch.setattr(build, "write_shard", counted)
    opened = open_corpus(str(corpus))
    write_corpus_release(opened, tmp_path / "out", name="team/test-corpus", shard_bytes=9_000)
    assert len(calls) == len(opened.shards(9_000)) - 3
    assert contents(tmp_path / "out") == contents(released_corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_are_refused(corpus: Path, tmp_path: Path) -> None:
    script = _KILLED.replace("os.kill(os.getpid(), signal.{signal})", "signal.pause()")
    command = [sys.executable, "-c", script, str(corpus), str(tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "EMMA_PROGRESS": "0"})
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(UserError, match=rf"process {process.pid} of .* is writing it"):
            write_corpus_release(open_corpus(str(corpus)), tmp_path / "out")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _rewrite(corpus: Path, part: str, column: str, value: str | None, *, honest: bool = True) -> None:
    """Changes the first row of a part and, if `honest`, updates the manifest."""
    path = corpus / "split" / part
    table = pq.read_table(path)
    values = [value, *table[column].to_pylist()[1:]]
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, pa.string())), path)
    manifest = read_json(corpus / "split" / "manifest.json")
    record = next(entry for entry in manifest["outputs"] if entry["path"] == part)
    record["bytes"] = path.stat().st_size
    if honest:
        record["checksum"] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    write_json(corpus / "split" / "manifest.json", manifest)


PART = "monolingual/deu_Latn/part-00000.parquet"


@pytest.mark.parametrize(
    ("column", "value", "honest", "message"),
    [
        ("license", "", True, r"part-00000\.parquet: row 1 \(id .*`license` is empty"),
        ("license", None, True, "`license` is empty"),
        ("language", "eng_Latn", True, "`language` differs from the folder's deu_Latn"),
        ("split", "test", True, "`split` is not one of train, validation"),
        ("text", "", True, "`text` is empty"),
        ("text", "another text", False, "differs from the corpus's manifest"),
    ],
)
def test_rows_that_cannot_be_released(
    own_corpus: Path, tmp_path: Path, column: str, value: str | None, honest: bool, message: str
) -> None:
    _rewrite(own_corpus, PART, column, value, honest=honest)
    with pytest.raises(UserError, match=message):
        write_corpus_release(open_corpus(str(own_corpus)), tmp_path / "out", shard_bytes=9_000)
    assert not (tmp_path / "out").exists()


def test_documents_that_do_not_add_up(own_corpus: Path, tmp_path: Path) -> None:
    path = own_corpus / "statistics" / "accounts-split.parquet"
    table = pq.read_table(path)
    index = table.column_names.index("documents")
    more = [table["documents"][0].as_py() + 1, *table["documents"].to_pylist()[1:]]
    pq.write_table(table.set_column(index, "documents", pa.array(more, pa.int64())), path)
    with pytest.raises(CheckFailedError, match="its statistics say"):
        write_corpus_release(open_corpus(str(own_corpus)), tmp_path / "out")


def test_what_is_not_a_corpus(own_corpus: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"neither a corpus \(split/\) nor a run"):
        open_corpus(str(empty))
    with pytest.raises(UserError, match="no run `nowhere`"):
        open_corpus("nowhere")
    with pytest.raises(UserError, match="overrides apply only to a RUN"):
        open_corpus(str(own_corpus), ["data.name=x"])
    (own_corpus / "split" / PART).unlink()
    with pytest.raises(UserError, match=r"part-00000\.parquet: missing"):
        open_corpus(str(own_corpus))
    (own_corpus / "split" / "manifest.json").unlink()
    with pytest.raises(UserError, match="last stage is not built"):
        open_corpus(str(own_corpus))


def test_a_run_names_its_corpus(own_corpus: Path) -> None:
    with pytest.raises(
        UserError, match="contains the corpus of the data recipe `test`, but the run's is `demo`"
    ):
        open_corpus("demo", [f"paths.corpus={own_corpus}"])
    manifest = read_json(own_corpus / "split" / "manifest.json")
    manifest["extra"]["data"] = "demo"
    write_json(own_corpus / "split" / "manifest.json", manifest)
    opened = open_corpus("demo", [f"paths.corpus={own_corpus}"])
    assert opened.recipe is not None
    assert opened.root == own_corpus
