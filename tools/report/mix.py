"""What the run was trained on: shares of components, categories, and languages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from emma.tools.charts.inline import Segment, share_bar
from emma.tools.evaluation.groups import order_categories
from emma.tools.report.records import MixPart, RunRecord

__all__ = ["MixRow", "MixView", "mix_view"]

_LARGEST = 12


@dataclass(frozen=True)
class MixRow:
    """Sums over sources: `share` of the mix's tokens, `epochs` over the store's tokens."""

    name: str
    part_of: str
    sources: int
    store_tokens: int
    tokens: int
    share: float

    @property
    def epochs(self) -> float:
        return self.tokens / self.store_tokens if self.store_tokens else 0.0


@dataclass(frozen=True)
class MixView:
    """The mix on the page: `bar` of the components, table `rows` (each component, then its categories), and
    the languages with the most training tokens, with the number of times each is repeated."""

    bar: Markup
    rows: list[MixRow]
    largest: list[MixRow]
    tokens: int
    languages: int
    pairs: int


def mix_view(run: RunRecord) -> MixView | None:
    """A run's mix; None if its plan is missing."""
    parts = [part for part in run.mix if part.tokens]
    if not parts:
        return None
    total = sum(part.tokens for part in parts)
    components: dict[str, list[MixPart]] = {}
    for part in parts:
        components.setdefault(part.component, []).append(part)
    ordered = sorted(components.items(), key=lambda item: -sum(part.tokens for part in item[1]))
    rows: list[MixRow] = []
    for name, members in ordered:
        rows.append(_row(name, "", members, total))
        categories = order_categories((p.category for p in members if p.category), run.recipe.data.mix)
        if categories:
            rows += [
                _row(category, name, [p for p in members if p.category == category], total)
                for category in categories
            ]
    segments = [
        Segment(name, sum(part.tokens for part in members), f"s{place % 8}")
        for place, (name, members) in enumerate(ordered)
    ]
    codes: dict[str, list[MixPart]] = {}
    for part in parts:
        # Only natural languages have a script in their code; programming languages and the like don't.
        if "_" in part.language and "-" not in part.language:
            codes.setdefault(part.language, []).append(part)
    largest = sorted(
        (_row(code, "", members, total) for code, members in codes.items()), key=lambda row: -row.tokens
    )
    pairs = {part.language for part in parts if "_" in part.language and "-" in part.language}
    return MixView(
        share_bar(segments, "Shares of the mix by component"),
        rows,
        largest[:_LARGEST],
        total,
        len(codes),
        len(pairs),
    )


def _row(name: str, part_of: str, parts: Iterable[MixPart], total: int) -> MixRow:
    members = list(parts)
    tokens = sum(part.tokens for part in members)
    return MixRow(
        name, part_of, len(members), sum(part.store_tokens for part in members), tokens, tokens / total
    )
