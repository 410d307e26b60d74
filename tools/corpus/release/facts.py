"""The content of a corpus card and its tables, from the corpus's own records and rows. Needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emma.base.errors import CheckFailedError
from emma.tools.corpus.accounts import MEASURES
from emma.tools.corpus.categories import categories
from emma.tools.corpus.release.shards import SPLITS, Shard
from emma.tools.corpus.release.source import CorpusSource
from emma.tools.languages.labels import language_name

__all__ = ["LICENSES_NAME", "STATISTICS_NAME", "CorpusFacts", "corpus_facts", "csv_text", "natural_languages"]

LICENSES_NAME = "licenses.csv"
STATISTICS_NAME = "statistics.csv"


@dataclass(frozen=True)
class CorpusFacts:
    """Everything that the card and the tables print.

    Attributes:
        title: name of the corpus.
        source: where it came from.
        rows: by kind and language or pair: `kind language name category train validation`, and the measures.
        licenses: by source, kind, and licence: `source kind license documents characters bytes url`.
        files: data files with kind, language, and split, in order.
    """

    title: str
    source: CorpusSource
    rows: list[dict[str, Any]]
    licenses: list[dict[str, Any]]
    files: list[tuple[str, str, str]]

    @property
    def kinds(self) -> list[str]:
        """Kinds of text, in order."""
        return list(dict.fromkeys(row["kind"] for row in self.rows))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Rows of one kind."""
        return [row for row in self.rows if row["kind"] == kind]

    def total(self, name: str, kind: str | None = None) -> int:
        """Sum of a column."""
        return sum(row[name] for row in self.rows if kind in (None, row["kind"]))

    def by_category(self, kind: str) -> list[dict[str, Any]]:
        """Languages, documents, and tokens per resource category, for a kind that has categories."""
        found = []
        for name in categories(kind):
            rows = [row for row in self.of_kind(kind) if row["category"] == name]
            if rows:
                sums = {
                    measure: sum(row[measure] for row in rows) for measure in ("documents", "bytes", "tokens")
                }
                found.append({"category": name, "languages": len(rows), **sums})
        return found


def corpus_facts(
    title: str, source: CorpusSource, shards: Sequence[Shard], results: Sequence[dict[str, Any]]
) -> CorpusFacts:
    """Collects the facts.

    Args:
        title: name of the corpus.
        source: the corpus.
        shards: the corpus's shards.
        results: the result of writing each shard.

    Raises:
        CheckFailedError: the documents written do not match the corpus's counts.
    """
    by_split: dict[tuple[str, str], dict[str, int]] = {}
    by_license: dict[tuple[str, str, str], list[int]] = {}
    for shard, result in zip(shards, results, strict=True):
        for name, license_, split, *values in result["sources"]:
            counts = by_split.setdefault((shard.kind, shard.language), dict.fromkeys(SPLITS, 0))
            counts[split] += values[0]
            sums = by_license.setdefault((name, shard.kind, license_), [0, 0, 0])
            sums[:] = (a + b for a, b in zip(sums, values, strict=True))
    counted = {(row["kind"], row["language"]): row["documents"] for row in source.statistics}
    written = {key: sum(counts.values()) for key, counts in by_split.items()}
    if wrong := sorted(
        key for key in counted.keys() | written.keys() if counted.get(key) != written.get(key)
    ):
        kind, language = wrong[0]
        raise CheckFailedError(
            f"{source.root}: {kind} {language} has {written.get(wrong[0], 0)} documents, but its statistics say "
            f"{counted.get(wrong[0], 0)} ({len(wrong)} such); build the corpus again: `emma corpus build RUN`"
        )
    rows = [
        {
            **{name: row[name] for name in ("kind", "language")},
            "name": _name(row["kind"], row["language"]),
            "category": row["category"],
            **by_split[row["kind"], row["language"]],
            **{name: row[name] for name in MEASURES},
        }
        for row in source.statistics
    ]
    order = {shard.kind: number for number, shard in enumerate(shards)}
    rows.sort(key=lambda row: (order[row["kind"]], row["language"]))
    urls = {}
    if source.recipe is not None and source.recipe.data.corpus is not None:
        urls = {name: entry.url for name, entry in source.recipe.data.corpus.sources.items()}
    licenses = [
        {
            **dict(zip(("source", "kind", "license"), key, strict=True)),
            **dict(zip(("documents", "characters", "bytes"), values, strict=True)),
            "url": urls.get(key[0], ""),
        }
        for key, values in sorted(by_license.items())
    ]
    files = [(row["kind"], row["language"], split) for row in rows for split in SPLITS if row[split]]
    return CorpusFacts(title, source, rows, licenses, files)


def _name(kind: str, language: str) -> str:
    """English name of a language, or of both languages of a pair; programming languages keep their name."""
    if kind == "code":
        return language
    return " – ".join(language_name(code) for code in language.split("-"))


def natural_languages(facts: CorpusFacts) -> list[str]:
    """Codes of all natural languages, including those in pairs."""
    codes = {code for row in facts.rows if row["kind"] != "code" for code in row["language"].split("-")}
    return sorted(codes)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
