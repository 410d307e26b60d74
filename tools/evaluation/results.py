"""Results in long format: one row per model, benchmark, language and metric."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.tools.evaluation.bootstrap import error_of, ratio_draws
from emma.tools.evaluation.journal import LanguageScores

__all__ = ["BENCHMARK", "Result", "heldout_results", "merge_results", "read_results", "write_results"]

BENCHMARK = "heldout"
"""Benchmark name of scores on held-out text; in tables it is `heldout/<kind>`."""


@dataclass(frozen=True)
class Result:
    """One score.

    Attributes:
        model: name of the model.
        benchmark: e.g. `heldout/monolingual`.
        language: language or pair.
        metric: on held-out text, `bits_per_byte`, `nll_per_token` (nats) or `nll_per_document` (nats).
        n: number of documents (items) behind the value.
        value: the score.
        error: its standard error; None if it cannot be estimated.
        signature: everything besides model and text that determines the score.
    """

    model: str
    benchmark: str
    language: str
    metric: str
    n: int
    value: float
    error: float | None
    signature: str


def heldout_results(model: str, scores: Iterable[LanguageScores]) -> list[Result]:
    """Rows for one model's scores on held-out text, with bootstrap errors over documents."""
    rows = []
    for language in scores:
        documents = language.documents
        bits = [document.nll / math.log(2) for document in documents]
        nats = [document.nll for document in documents]
        benchmark = f"{BENCHMARK}/{language.kind}"
        for metric, top, bottom in (
            ("bits_per_byte", bits, [document.bytes for document in documents]),
            ("nll_per_token", nats, [document.tokens for document in documents]),
            ("nll_per_document", nats, [1] * len(documents)),
        ):
            draws = ratio_draws(top, bottom, f"{benchmark}/{language.language}")
            rows.append(
                Result(
                    model,
                    benchmark,
                    language.language,
                    metric,
                    len(documents),
                    sum(top) / sum(bottom),
                    error_of(draws, len(documents)),
                    language.signature,
                )
            )
    return rows


def merge_results(old: Iterable[Result], new: Sequence[Result]) -> list[Result]:
    """The rows of `new`, and those of `old` for other models, benchmarks or languages, sorted."""
    replaced = {(row.model, row.benchmark, row.language) for row in new}
    rows = [row for row in old if (row.model, row.benchmark, row.language) not in replaced] + list(new)
    return sorted(rows, key=lambda row: (row.benchmark, row.model, row.language, row.metric))


def write_results(folder: Path, rows: Sequence[Result]) -> None:
    """Writes the rows to both `results.parquet` and `results.csv`, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("model", pa.string()),
            ("benchmark", pa.string()),
            ("language", pa.string()),
            ("metric", pa.string()),
            ("n", pa.int64()),
            ("value", pa.float64()),
            ("error", pa.float64()),
            ("signature", pa.string()),
        ]
    )
    records = [asdict(row) for row in rows]
    with atomic_write(folder / "results.parquet") as handle:
        pq.write_table(pa.Table.from_pylist(records, schema=schema), handle)
    with atomic_write(folder / "results.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(records)


def read_results(folder: Path) -> list[Result]:
    """Rows of `folder/results.parquet`; an empty list if there is no such file.

    Raises:
        UserError: the file is damaged or has another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "results.parquet"
    if not path.is_file():
        return []
    names = [field.name for field in fields(Result)]
    try:
        records: list[dict[str, Any]] = pq.read_table(path, columns=names).to_pylist()
        return [Result(**record) for record in records]
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a table of results ({error}); run the evaluation again") from None
