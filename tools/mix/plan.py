"""Plans a mix: the tokens of every source, solved exactly, and the gates that refuse a bad plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from emma.base.errors import CheckFailedError, UserError
from emma.recipes.schema.data import Mix
from emma.tools.mix.layout import DatasetInfo, SourceInfo
from emma.tools.mix.sources import Source

__all__ = [
    "PLAN_SCHEMA",
    "MixPlan",
    "PlannedSource",
    "ValidationGroup",
    "by_category",
    "make_plan",
    "plan_validation",
    "water_fill",
    "realised",
    "weight_of",
]


@dataclass(frozen=True)
class PlannedSource:
    """A source with the tokens it gives to training and the most it may give."""

    source: Source
    target_tokens: int
    cap_tokens: int

    @property
    def epochs(self) -> float:
        """How often training sees the source."""
        return self.target_tokens / self.source.tokens if self.source.tokens else 0.0

    @property
    def may_give_nothing(self) -> bool:
        """Whether less than half a document of mean length is planned (of a source whose documents are counted)."""
        documents = self.source.documents
        return documents > 0 and 0 < 2 * self.target_tokens * documents < self.source.tokens

    @property
    def capped(self) -> bool:
        """Whether it is at its cap."""
        return self.source.tokens > 0 and self.target_tokens >= self.cap_tokens


@dataclass(frozen=True)
class ValidationGroup:
    """A validation group: its name, and the tokens it takes from every source (by component and language)."""

    name: str
    targets: dict[tuple[str, str], int]

    @property
    def tokens(self) -> int:
        return sum(self.targets.values())


@dataclass(frozen=True)
class MixPlan:
    """A solved mix.

    `faults` are failed gates; a plan with faults must not be built. `notes` say what the caps moved and what
    was left out.
    """

    tokens: int
    sequence_length: int | None
    sources: list[PlannedSource]
    shares: dict[str, float]
    groups: list[ValidationGroup] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def planned_tokens(self) -> int:
        """Tokens of all sources; the budget, unless the sources cannot supply it."""
        return sum(planned.target_tokens for planned in self.sources)

    def component_tokens(self) -> dict[str, int]:
        """Planned tokens by component."""
        totals = dict.fromkeys(self.shares, 0)
        for planned in self.sources:
            totals[planned.source.component] += planned.target_tokens
        return totals

    def check(self) -> None:
        """Raises CheckFailedError with all failed gates, if there are any."""
        if self.faults:
            raise CheckFailedError("the plan fails:\n" + "\n".join(f"- {fault}" for fault in self.faults))

    def table(self) -> pa.Table:
        """One row per source: what it holds and what training sees of it."""
        rows = [self._row(planned) for planned in self.sources]
        return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)

    def _row(self, planned: PlannedSource) -> dict[str, Any]:
        source = planned.source
        samples = planned.target_tokens / self.sequence_length if self.sequence_length else None
        return {
            "component": source.component,
            "language": source.language,
            "category": source.category,
            "words": source.words,
            "store_documents": source.documents,
            "store_tokens": source.tokens,
            "epochs": planned.epochs,
            "max_epochs": planned.cap_tokens / source.tokens if source.tokens else 0.0,
            "tokens": planned.target_tokens,
            "documents": round(source.documents * planned.epochs),
            "samples": samples,
            "share": planned.target_tokens / self.tokens,
            "capped": planned.capped,
        }


PLAN_SCHEMA = pa.schema(
    [
        ("component", pa.string()),
        ("language", pa.string()),
        ("category", pa.string()),
        ("words", pa.int64()),
        ("store_documents", pa.int64()),
        ("store_tokens", pa.int64()),
        ("epochs", pa.float64()),
        ("max_epochs", pa.float64()),
        ("tokens", pa.int64()),
        ("documents", pa.int64()),
        ("samples", pa.float64()),
        ("share", pa.float64()),
        ("capped", pa.bool_()),
    ]
)
"""Columns of `plan.parquet`. `documents` counts a document each time it is seen, `samples` is tokens over
sequence length, `share` is of the whole mix."""


BUILT_SCHEMA = pa.schema(
    [
        *PLAN_SCHEMA,
        ("built_documents", pa.int64()),
        ("built_tokens", pa.int64()),
        ("rounding", pa.string()),
    ]
)
"""Columns of a mix's `plan.parquet`."""


def water_fill(total: int, weights: Sequence[float], caps: Sequence[int]) -> np.ndarray:
    """Divides a total in proportion to weights, with no part above its cap; what a capped part cannot take
    goes to the others.

    Args:
        total: what to divide.
        weights: positive weights.
        caps: largest part of each.

    Returns:
        Parts (int64) that sum to min(total, sum of caps); min(cap, level × weight), rounded by largest
        remainder.
    """
    weight = np.asarray(weights, np.float64)
    cap = np.asarray(caps, np.int64)
    if not len(weight):
        return np.zeros(0, np.int64)
    if int(cap.sum()) <= total:
        return cap.copy()
    # Parts reach their caps in the order of cap / weight; find how many do.
    order = np.argsort(cap / weight, kind="stable")
    capped_before = np.concatenate([[0.0], np.cumsum(cap[order].astype(np.float64))[:-1]])
    weight_left = np.cumsum(weight[order][::-1])[::-1]
    levels = (total - capped_before) / weight_left
    reached = cap[order] / weight[order] < levels
    first_free = int(np.argmin(reached))
    exact = np.minimum(levels[first_free] * weight, cap.astype(np.float64))
    parts = np.minimum(np.floor(exact).astype(np.int64), cap)
    missing = total - int(parts.sum())
    # Largest remainders first; never above a cap.
    by_remainder = np.argsort(-(exact - parts), kind="stable")
    while missing > 0:
        free = by_remainder[parts[by_remainder] < cap[by_remainder]]
        step = free[:missing] if missing < len(free) else free
        parts[step] += np.minimum(np.maximum(missing // len(step), 1), cap[step] - parts[step])
        missing = total - int(parts.sum())
    return parts


def make_plan(
    mix: Mix, sources: Sequence[Source], tokens: int, sequence_length: int | None = None
) -> MixPlan:
    """Solves a mix.

    Args:
        mix: the recipe's `data.mix`.
        sources: the available sources.
        tokens: budget of training.
        sequence_length: to count samples; None without a run.

    Returns:
        The plan, with `faults` where the gates fail: a component short of its share, the whole short of its
        budget, a validation group too small.

    Raises:
        UserError: a component has no source.
    """
    # Sorted, so that the order of keys in a recipe does not matter.
    by_component: dict[str, list[Source]] = {name: [] for name in sorted(mix.components)}
    for source in sources:
        by_component[source.component].append(source)
    caps: dict[str, list[int]] = {}
    for name, members in by_component.items():
        if not any(source.tokens for source in members):
            raise UserError(
                f"data.mix.components.{name}: no source takes part (categories, include and exclude leave "
                "none, or the store holds none)"
            )
        caps[name] = [_cap(mix, source) for source in members]
    names = list(by_component)
    wanted = mix.shares
    parts = water_fill(tokens, [wanted[name] for name in names], [sum(caps[name]) for name in names])
    planned, notes, faults = [], [], []
    for name, part in zip(names, parts.tolist(), strict=True):
        members = by_component[name]
        weights = [weight_of(mix, source) for source in members]
        targets = water_fill(part, weights, caps[name])
        rows = [
            PlannedSource(source, int(target), cap)
            for source, target, cap in zip(members, targets, caps[name], strict=True)
        ]
        planned += rows
        notes += _notes(name, rows, part, weights)
        share = 100 * part / tokens
        asked = wanted[name] * tokens
        # (In a tiny budget one token exceeds the tolerance.)
        if abs(share - 100 * wanted[name]) > mix.share_tolerance and abs(part - asked) > 1:
            message = (
                f"component {name} gets {share:.2f} % of the mix, but its share is {100 * wanted[name]:.2f} %: "
                f"at its caps it holds {sum(caps[name]):,} tokens, but the share asks for {round(asked):,}"
            )
            if mix.allow_short:
                notes.append(message)
            else:
                faults.append(message + "; raise max_epochs, lower the share, or set data.mix.allow_short")
    if (total := sum(row.target_tokens for row in planned)) < tokens:
        faults.append(
            f"the mix holds {total:,} tokens at its caps, but the budget is {tokens:,}; raise max_epochs, or "
            "lower the budget (schedule.steps × batch.global × batch.sequence_length)"
        )
    if small := [f"{row.source.component}/{row.source.language}" for row in planned if row.may_give_nothing]:
        notes.append(
            f"{len(small)} sources are planned with less than half a document of their mean length, and give nothing if all "
            f"their documents are more than twice what is planned: {', '.join(small)}"
        )
    return MixPlan(tokens, sequence_length, planned, wanted, [], faults, notes)


def _cap(mix: Mix, source: Source) -> int:
    component = mix.components[source.component]
    epochs = component.max_epochs
    if source.category is not None:
        epochs = component.categories[source.category].max_epochs or epochs
    epochs = component.max_epochs_of.get(source.language, epochs)
    return int(source.tokens * epochs)


def weight_of(mix: Mix, source: Source) -> float:
    """What a source's part of its component is in proportion to, while no source is at its cap."""
    component = mix.components[source.component]
    factor = component.factor_of.get(source.language, 1.0)
    if component.temperature is not None:
        return float(max(source.tokens, 1) ** (1 / component.temperature)) * factor
    if source.category is not None:
        factor *= component.categories[source.category].factor
    return max(source.tokens, 1) * factor


def _notes(name: str, rows: Sequence[PlannedSource], part: int, weights: Sequence[float]) -> list[str]:
    """Says how many tokens a component's caps moved between sources."""
    capped = [row for row in rows if row.capped]
    if not capped:
        return []
    fair = part * np.asarray(weights) / sum(weights)
    moved = sum(
        max(0.0, float(fair_tokens) - row.target_tokens) for row, fair_tokens in zip(rows, fair, strict=True)
    )
    return [
        f"component {name}: {len(capped)} of {len(rows)} sources are at their caps; {round(moved):,} tokens "
        "went to the others"
    ]


def plan_validation(
    mix: Mix, sources: Sequence[Source]
) -> tuple[list[ValidationGroup], list[str], list[str]]:
    """Validation groups over the documents set apart for validation.

    Returns:
        Groups, faults (groups too small to mean anything), notes (groups left out).
    """
    settings = mix.validation
    members: dict[str, list[Source]] = {}
    for source in sources:
        if settings.by_component:
            members.setdefault(f"component-{source.component}", []).append(source)
        if settings.by_category and source.category is not None:
            members.setdefault(f"category-{source.component}-{source.category}", []).append(source)
        if source.language in settings.languages:
            members.setdefault(f"language-{source.language}", []).append(source)
    faults = [
        f"data.mix.validation.languages: {language} is not a source of the mix"
        for language in settings.languages
        if f"language-{language}" not in members
    ]
    groups, notes = [], []
    for name, group in sorted(members.items()):
        held = [source for source in group if source.validation_tokens]
        available = [source.validation_tokens for source in held]
        parts = water_fill(settings.max_tokens, [1.0] * len(held), available)
        targets = {source.key: int(part) for source, part in zip(held, parts, strict=True)}
        if sum(targets.values()) < settings.min_tokens:
            message = (
                f"validation group {name} would hold {sum(targets.values()):,} tokens, but "
                f"data.mix.validation.min_tokens is {settings.min_tokens:,}"
            )
            if settings.omit_small:
                notes.append(message + ": left out")
            else:
                faults.append(
                    message + "; set more documents apart for validation, lower min_tokens, or set omit_small"
                )
            continue
        groups.append(ValidationGroup(name, targets))
    return groups, faults, notes


def by_category(plan: MixPlan) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Sources, tokens and mean epochs by component and category, in the plan's order."""
    totals: dict[tuple[str, str | None], dict[str, Any]] = {}
    for planned in plan.sources:
        row = totals.setdefault(
            (planned.source.component, planned.source.category),
            {"sources": 0, "store_tokens": 0, "tokens": 0, "capped": 0, "highest_epochs": 0.0},
        )
        row["sources"] += 1
        row["store_tokens"] += planned.source.tokens
        row["tokens"] += planned.target_tokens
        row["capped"] += planned.capped
        row["highest_epochs"] = max(row["highest_epochs"], planned.epochs)
    return totals


def realised(plan: MixPlan, train: DatasetInfo, rounding: Mapping[tuple[str, str], str]) -> pa.Table:
    """The plan's table with the documents and tokens that were built, and how each source was rounded (None where
    nothing was planned)."""
    built: dict[tuple[str, str], SourceInfo] = {
        (source.component, source.language): source for source in train.sources
    }
    rows = plan.table().to_pylist()
    for row in rows:
        key = row["component"], row["language"]
        row["built_documents"] = built[key].documents
        row["built_tokens"] = built[key].document_tokens
        row["rounding"] = rounding.get(key)
    return pa.Table.from_pylist(rows, schema=BUILT_SCHEMA)
