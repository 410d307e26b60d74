"""What is known about each language: its resource category, and which models were trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.base.files import read_json

if TYPE_CHECKING:
    from emma.recipes.schema.data import Mix

__all__ = [
    "ENGLISH",
    "LANGUAGE_KINDS",
    "SEEN_FILE",
    "LanguageFacts",
    "language_facts",
    "order_categories",
    "read_seen",
]

ENGLISH = "eng_Latn"
"""Continual pre-training may make a model forget English: it is reported separately, never averaged in."""

LANGUAGE_KINDS = ("monolingual", "parallel", "bilingual")
"""Kinds of text with one folder per natural language or pair. The others (code, papers, books, instruction)
are each reported as a whole."""

SEEN_FILE = "languages.json"
"""File in a base model's folder that lists the languages it was pre-trained on."""

_PAPERS_ORDER = ("very-high", "high", "medium-high", "medium", "medium-low", "low", "very-low", "unseen")


@dataclass(frozen=True)
class LanguageFacts:
    """Facts by (kind, language).

    `category` maps to the resource category, and `categories` orders these from rich to poor. `trained` holds
    what the run's mix trains on, `seen` the languages that the base was pre-trained on (None: unknown).
    """

    category: Mapping[tuple[str, str], str] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    trained: frozenset[tuple[str, str]] | None = None
    seen: frozenset[str] | None = None

    def category_of(self, kind: str, language: str) -> str | None:
        """Resource category; None if unknown."""
        return self.category.get((kind_of(kind), language))

    def is_trained(self, kind: str, language: str) -> bool | None:
        """Whether the run's mix contains this language; None if the mix is unknown."""
        return None if self.trained is None else (kind_of(kind), language) in self.trained

    def is_seen(self, language: str) -> bool | None:
        """Whether the base was pre-trained on this language (for a pair, on both); None if unknown."""
        return None if self.seen is None else all(code in self.seen for code in language.split("-"))


def read_seen(path: Path) -> frozenset[str]:
    """Languages that a base model was pre-trained on.

    Args:
        path: `languages.json` (`{"seen": ["eng_Latn", ...]}`) or a text file with one code per line.

    Raises:
        UserError: no such file, or its content has another form.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a list of language codes, one per line")
    if path.suffix != ".json":
        lines = path.read_text(encoding="utf-8").splitlines()
        return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    value = read_json(path)
    seen = value.get("seen") if isinstance(value, dict) else value
    if not isinstance(seen, list) or not all(isinstance(code, str) for code in seen):
        raise UserError(f'{path}: the content must be {{"seen": ["eng_Latn", ...]}}')
    return frozenset(seen)


def order_categories(names: Iterable[str], mix: Mix | None = None) -> tuple[str, ...]:
    """Resource categories from richest to poorest, by the mix's thresholds, then in the papers' order.

    Args:
        names: categories in any order, possibly repeated.
        mix: the recipe's `data.mix`.
    """
    thresholds: dict[str, int] = {}
    for component in mix.components.values() if mix else ():
        for name, category in component.categories.items():
            thresholds[name] = max(thresholds.get(name, 0), category.at_least)
    papers = {name: place for place, name in enumerate(_PAPERS_ORDER)}
    return tuple(
        sorted(
            dict.fromkeys(names),
            key=lambda name: (
                -thresholds.get(name, 0),
                papers.get(name.replace("_", "-"), len(papers)),
                name,
            ),
        )
    )


def language_facts(
    mix: Path | None, corpus: Path | None, seen: frozenset[str] | None, settings: Mix | None = None
) -> LanguageFacts:
    """Facts from a mix's plan and, for kinds of text that lack categories there, from corpus statistics.

    Args:
        mix: folder of the mix, with `plan.parquet`.
        corpus: corpus folder, with `statistics/statistics.parquet`.
        seen: languages of the base, from `read_seen`.
        settings: the recipe's `data.mix`, whose thresholds order the categories.
    """
    plan = _rows(mix / "plan.parquet" if mix else None, ["component", "language", "category", "tokens"])
    category = {
        (kind_of(row["component"]), row["language"]): row["category"] for row in plan if row["category"]
    }
    # The mix and the corpus have different thresholds, so only one of them counts per kind of text.
    planned = {kind for kind, _ in category}
    statistics = corpus / "statistics" / "statistics.parquet" if corpus else None
    for row in _rows(statistics, ["stage", "kind", "language", "category"]):
        if row["stage"] == "split" and row["category"] and kind_of(row["kind"]) not in planned:
            category[kind_of(row["kind"]), row["language"]] = row["category"]
    trained = (
        frozenset((kind_of(row["component"]), row["language"]) for row in plan if row["tokens"])
        if plan
        else None
    )
    return LanguageFacts(category, order_categories(category.values(), settings), trained, seen)


def kind_of(component: str) -> str:
    """The corpus's name for a component's kind of text: sentence pairs are `parallel` there."""
    return "parallel" if component == "bilingual" else component


def _rows(path: Path | None, columns: list[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path is None or not path.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the stage that writes it again") from None
    return rows
