"""Tables of what a corpus holds: per stage, kind and language, and compared with published statistics."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.tools.corpus.accounts import KEPT, MEASURES, accounts_path
from emma.tools.corpus.categories import categories, category
from emma.tools.corpus.layout import STAGES

__all__ = ["Published", "accounts_table", "compare", "published", "statistics", "summary", "write_table"]


def accounts_table(root: Path) -> pa.Table:
    """Accounts of all finished stages; columns `stage kind language source outcome` and the measures.

    Raises:
        UserError: there are none.
    """
    paths = [accounts_path(root, stage) for stage in STAGES]
    tables = [pq.read_table(path) for path in paths if path.is_file()]
    if not tables:
        raise UserError(f"{root}: no statistics here; build the corpus first (emma corpus build)")
    return pa.concat_tables(tables)


def statistics(root: Path) -> pa.Table:
    """One row per stage, kind and language or pair.

    Columns: `stage kind language`, the measures of what was kept, `target_tokens`, the resource `category` by
    whitespace tokens, and `removed` (documents).
    """
    sums: dict[tuple[str, str, str], list[int]] = {}
    removed: dict[tuple[str, str, str], int] = {}
    for row in accounts_table(root).to_pylist():
        key = (row["stage"], row["kind"], row["language"])
        if row["outcome"] == KEPT:
            values = sums.setdefault(key, [0] * len(MEASURES))
            sums[key] = [a + row[name] for a, name in zip(values, MEASURES, strict=True)]
        else:
            removed[key] = removed.get(key, 0) + row["documents"]
    rows = []
    for key in sorted({*sums, *removed}, key=lambda k: (STAGES.index(k[0]), k[1], k[2])):
        total = dict(zip(MEASURES, sums.get(key, [0] * len(MEASURES)), strict=True))
        pair = key[1] == "parallel"
        rows.append(
            {
                **dict(zip(("stage", "kind", "language"), key, strict=True)),
                **total,
                "target_tokens": total["tokens"] - total["source_tokens"] if pair else 0,
                "category": category(key[1], total["tokens"])
                if key[1] in ("monolingual", "parallel")
                else "",
                "removed": removed.get(key, 0),
            }
        )
    integers = (*MEASURES, "target_tokens", "removed")
    names = ("stage", "kind", "language", *MEASURES, "target_tokens", "category", "removed")
    schema = pa.schema([(name, pa.int64() if name in integers else pa.string()) for name in names])
    return pa.Table.from_pylist(rows, schema=schema)


def write_table(table: pa.Table, path: Path) -> None:
    """Writes `path`.parquet and `path`.csv."""
    with atomic_write(path.with_suffix(".parquet")) as handle:
        pq.write_table(table, handle, compression="zstd")
    with atomic_write(path.with_suffix(".csv")) as handle:
        pa_csv.write_csv(table, handle, pa_csv.WriteOptions(quoting_style="needed"))


def summary(table: pa.Table) -> list[dict[str, Any]]:
    """Totals of a statistics table, with numbers of languages: one row per stage, kind and category."""
    totals: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in table.to_pylist():
        if not row["documents"]:
            continue
        key = (row["stage"], row["kind"], row["category"])
        total = totals.setdefault(
            key,
            {
                **dict(zip(("stage", "kind", "category"), key, strict=True)),
                "languages": 0,
                **dict.fromkeys(MEASURES, 0),
            },
        )
        total["languages"] += 1
        for name in MEASURES:
            total[name] += row[name]
    order = {kind: list(categories(kind)) for kind in ("monolingual", "parallel")}

    def place(key: tuple[str, str, str]) -> tuple[int, str, int]:
        names = order.get(key[1], [""])
        return STAGES.index(key[0]), key[1], names.index(key[2])

    return [totals[key] for key in sorted(totals, key=place)]


class Published:
    """Published statistics: tokens and texts of each language or pair."""

    def __init__(self, kind: str, rows: dict[str, tuple[int, int]]) -> None:
        self.kind, self.rows = kind, rows

    def by_category(self) -> dict[str, dict[str, int]]:
        """Category → languages (or pairs), tokens and texts."""
        found = {name: {"languages": 0, "tokens": 0, "texts": 0} for name in categories(self.kind)}
        for tokens, texts in self.rows.values():
            entry = found[category(self.kind, tokens)]
            entry["languages"] += 1
            entry["tokens"] += tokens
            entry["texts"] += texts
        return found


def published(path: Path) -> Published:
    """Reads a CSV file of published statistics.

    Its columns are `lang_code`, `num_tokens`, `num_texts` or, for pairs, `lang_pair`, `tot_num_tokens`,
    `src_num_texts`.

    Raises:
        UserError: there is no such file, it lacks these columns, or a count is not an integer.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    for kind, names in (
        ("monolingual", ("lang_code", "num_tokens", "num_texts")),
        ("parallel", ("lang_pair", "tot_num_tokens", "src_num_texts")),
    ):
        if rows and all(name in rows[0] for name in names):
            try:
                values = {row[names[0]]: (int(row[names[1]]), int(row[names[2]])) for row in rows}
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}: a count is not an integer ({error})") from None
            return Published(kind, values)
    raise UserError(
        f"{path}: neither monolingual statistics (columns lang_code, num_tokens, num_texts) nor statistics of pairs "
        "(lang_pair, tot_num_tokens, src_num_texts)"
    )


def compare(rows: Iterable[dict[str, Any]], other: Published) -> list[dict[str, Any]]:
    """Compares a statistics table (one stage and kind) with a published one, language by language.

    Each row has the tokens here and published, their ratio, and both categories. Languages found in only one
    of the tables are included.
    """
    here = {row["language"]: row["tokens"] for row in rows if row["documents"]}
    result = []
    for language in sorted({*here, *other.rows}):
        mine, theirs = here.get(language), other.rows.get(language, (None, 0))[0]
        result.append(
            {
                "language": language,
                "tokens": mine,
                "published_tokens": theirs,
                "ratio": mine / theirs if mine is not None and theirs else None,
                "category": category(other.kind, mine) if mine is not None else None,
                "published_category": category(other.kind, theirs) if theirs is not None else None,
            }
        )
    return result
