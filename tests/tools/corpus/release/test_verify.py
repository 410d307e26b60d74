"""Finds every way in which a corpus release can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from emma.base.errors import CheckFailedError, UserError
from emma.commands.release import group
from emma.tools.corpus.release.verify import corpus_faults
from emma.tools.hub.checksums import write_checksums

TRAIN = "data/monolingual/deu_Latn/train-00000.parquet"
VALIDATION = "data/monolingual/deu_Latn/validation-00000.parquet"


def test_sound_release(released_corpus: Path) -> None:
    assert corpus_faults(released_corpus) == []
    result = CliRunner().invoke(group, ["verify", str(released_corpus), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {"folder": str(released_corpus), "passed": True, "faults": []}
    with pytest.raises(UserError, match="--generate works only for models"):
        CliRunner().invoke(group, ["verify", str(released_corpus), "--generate"], catch_exceptions=False)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _set(path: Path, column: str, value: str) -> None:
    table = pq.read_table(path)
    values = [value, *table[column].to_pylist()[1:]]
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, pa.string())), path)


def _train_on_validation(folder: Path) -> None:
    _set(folder / TRAIN, "text", pq.read_table(folder / VALIDATION)["text"][0].as_py())


def _drop_row(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / TRAIN).slice(1), folder / TRAIN)


def _add_file(folder: Path) -> None:
    (folder / "data/monolingual/deu_Latn/train-00099.parquet").write_bytes((folder / TRAIN).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_train_on_validation, r"is also in validation (same text)"),
        (_drop_row, "rows, but the manifest says"),
        (_add_file, "not in the manifest"),
        (lambda folder: (folder / TRAIN).unlink(), "missing, but listed in the manifest"),
        (lambda folder: (folder / TRAIN).write_bytes(b"PAR1"), "not a readable parquet file"),
        (lambda folder: _set(folder / TRAIN, "language", "eng_Latn"), "`language` is not deu_Latn"),
        (
            lambda folder: _set(folder / TRAIN, "license", "Unknown"),
            "a combination that licenses.csv does not list",
        ),
        (
            lambda folder: _replace(folder / "README.md", "- cc0-1.0\n", "- cc0\n"),
            "which the Hub does not know",
        ),
        (lambda folder: _replace(folder / "README.md", "- de\n", "- deu_Latn\n"), "not an ISO 639 code"),
        (
            lambda folder: _replace(
                folder / "README.md", "config_name: code-python", "config_name: code-pyton"
            ),
            "no configuration for code python",
        ),
        (
            lambda folder: _replace(
                folder / "README.md", "path: data/code/python/train", "path: data/code/python/training"
            ),
            "no file matches data/code/python/training-*.parquet",
        ),
        (lambda folder: (folder / "README.md").unlink(), "README.md: missing"),
        (lambda folder: (folder / "licenses.csv").unlink(), "licenses.csv: missing"),
        (lambda folder: _replace(folder / "statistics.csv", "train,", "training,"), "lacks a column"),
    ],
)
def test_faults_are_found_even_under_fresh_checksums(
    corpus_release: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(corpus_release)
    assert any("SHA256SUMS" in fault for fault in corpus_faults(corpus_release))
    write_checksums(corpus_release)
    assert any(message in fault for fault in corpus_faults(corpus_release)), corpus_faults(corpus_release)
    with pytest.raises(CheckFailedError, match="is not a valid release"):
        CliRunner().invoke(group, ["verify", str(corpus_release)], catch_exceptions=False)
