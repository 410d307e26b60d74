"""Reference scores: the published per-language tables, their averages, and the compact shipped table."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.tools.evaluation.averages import ALL, averages, category_of
from emma.tools.evaluation.measures import metric
from emma.tools.evaluation.wins import field_wins

__all__ = [
    "REFERENCE_TABLE",
    "ReferenceAverage",
    "ReferenceScores",
    "bases",
    "notes",
    "read_reference",
    "read_tables",
    "reference_averages",
    "shipped_models",
    "source",
    "write_reference",
]

_FOLDER = Path(__file__).parents[2] / "recipes" / "evaluation"
REFERENCE_TABLE = _FOLDER / "reference.csv"
_DIMENSIONS = ("overall", "category")


@dataclass(frozen=True)
class ReferenceScores:
    """One published table.

    Attributes:
        benchmark: name in `measures.yaml`.
        metric: name in `measures.yaml`; values are in the stored unit (accuracies from 0 to 1).
        values: model → language → value.
        published: model → the average that the authors report.
    """

    benchmark: str
    metric: str
    values: dict[str, dict[str, float]]
    published: dict[str, float]


@dataclass(frozen=True)
class ReferenceAverage:
    """A row of the shipped table.

    Attributes:
        model: display name.
        benchmark: name in `measures.yaml`.
        metric: name in `measures.yaml`.
        group: `all`, `all but English`, `English` or a resource category.
        languages: number of languages in the group.
        value: mean over these languages.
        won: number of languages in which no other model of the published table is better.
        field: number of models in the published table.
        published: for the group `all`, the average that the authors report; else None.
    """

    model: str
    benchmark: str
    metric: str
    group: str
    languages: int
    value: float
    won: int
    field: int
    published: float | None = None


@functools.cache
def _settings() -> dict[str, Any]:
    from emma.recipes.reading import read_yaml

    return read_yaml(_FOLDER / "reference_tables.yaml").values


def source() -> str:
    """Where the reference scores come from."""
    return str(_settings()["source"])


def shipped_models() -> list[str]:
    """Models of the shipped table, bases first."""
    return list(_settings()["models"])


def bases() -> dict[str, str]:
    """EMMA-500 model → the base model that it was trained from."""
    return dict(_settings()["bases"])


def notes(benchmark: str, model: str | None = None) -> list[str]:
    """Known problems with the published scores of a benchmark, or of one model on it."""
    return [
        row["note"]
        for row in _settings()["notes"]
        if row["benchmark"] == benchmark and row.get("model") == model
    ]


def read_tables(folder: Path) -> list[ReferenceScores]:
    """Reads the published tables.

    Args:
        folder: holds the files that `recipes/evaluation/reference_tables.yaml` names.

    Raises:
        UserError: a file is missing, or has a cell that is not a number.
    """
    names = {alias: name for name, aliases in _settings()["models"].items() for alias in aliases}
    return [_read_table(folder, row, names) for row in _settings()["tables"]]


def _read_table(folder: Path, settings: dict[str, Any], names: dict[str, str]) -> ReferenceScores:
    found = sorted(folder.glob(settings["file"]))
    if len(found) != 1:
        raise UserError(
            f"{folder / settings['file']}: {len(found) or 'no'} such files; give the folder of the published result tables"
        )
    path, scale = found[0], settings.get("scale", 1.0)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        header, *rows = csv.reader(handle)
    pattern = re.compile(settings["language"])
    columns = {
        place: match[1]
        for place, name in enumerate(header)
        if place and name != settings["published"] and (match := pattern.fullmatch(name))
    }
    average = header.index(settings["published"])
    values: dict[str, dict[str, float]] = {}
    published: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        model = names.get(row[0], row[0])
        try:
            values[model] = {name: float(row[place]) * scale for place, name in columns.items()}
            published[model] = float(row[average]) * scale
        except (ValueError, IndexError):
            raise UserError(
                f"{path}: line {number}: a cell of {row[0]} is not a number; fix the table"
            ) from None
    return ReferenceScores(settings["benchmark"], settings["metric"], values, published)


def reference_averages(
    tables: Sequence[ReferenceScores], *, category: Callable[[str], str | None] = category_of
) -> list[ReferenceAverage]:
    """Averages of each model: over all languages, all but English, English, and each resource category.

    Args:
        tables: from `read_tables`.
        category: resource category of a code.
    """
    rows = []
    for table in tables:
        won = field_wins(table.values, better=metric(table.metric).better, category=category)
        for model, values in table.values.items():
            for row in averages(values, category=category):
                if row.dimension in _DIMENSIONS:
                    rows.append(
                        ReferenceAverage(
                            model,
                            table.benchmark,
                            table.metric,
                            row.group,
                            row.languages,
                            row.value,
                            won[model].get(row.group, 0),
                            len(table.values),
                            table.published[model] if row.group == ALL else None,
                        )
                    )
    return rows


def write_reference(path: Path, rows: Iterable[ReferenceAverage]) -> None:
    """Writes the compact table: the shipped models, and the best model of each benchmark."""
    rows = list(rows)
    chosen = set(shipped_models())
    names = [field for field in ReferenceAverage.__dataclass_fields__]
    best: dict[tuple[str, str], ReferenceAverage] = {}
    for row in rows:
        key = (row.benchmark, row.metric)
        sign = metric(row.metric).sign
        if row.group == ALL and (key not in best or sign * row.value > sign * best[key].value):
            best[key] = row
    with atomic_write(path, "w", newline="", encoding="utf-8") as handle:
        handle.write(
            f"# {source()}\n# `emma report reference FOLDER --output FILE` writes it; accuracies from 0 to 1.\n"
        )
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            if row.model in chosen or row.model == best[row.benchmark, row.metric].model:
                writer.writerow(
                    [f"{value:.6g}" if isinstance(value, float) else value for value in row.__dict__.values()]
                )


def read_reference(path: Path = REFERENCE_TABLE) -> list[ReferenceAverage]:
    """Rows of the shipped table.

    Raises:
        UserError: it is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(line for line in handle if not line.startswith("#"))
            return [
                ReferenceAverage(
                    row["model"],
                    row["benchmark"],
                    row["metric"],
                    row["group"],
                    int(row["languages"]),
                    float(row["value"]),
                    int(row["won"]),
                    int(row["field"]),
                    float(row["published"]) if row["published"] else None,
                )
                for row in rows
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not the table of reference scores ({error}); restore it") from None
