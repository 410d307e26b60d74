"""Plots of a corpus: sizes of languages and pairs by resource category, removals by rule, Unicode blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.base.drawing import set_up_drawing
from emma.tools.charts.bars import MANY, grouped_bars, noted_bars, ranked_bars
from emma.tools.corpus.accounts import KEPT
from emma.tools.corpus.blocks import block_table
from emma.tools.corpus.categories import categories
from emma.tools.corpus.layout import STAGES
from emma.tools.corpus.stage import Build
from emma.tools.corpus.statistics import accounts_table, statistics, write_table

__all__ = ["draw"]


def draw(build: Build, stage: str) -> list[Path]:
    """Draws the plots of a stage as SVG files in `statistics/` and returns their paths.

    Raises:
        UserError: matplotlib is not installed.
    """
    set_up_drawing()
    folder = build.root / "statistics"
    rows = [row for row in statistics(build.root).to_pylist() if row["stage"] == stage and row["documents"]]
    paths = []
    for kind, what in (("monolingual", "languages"), ("parallel", "language pairs")):
        chosen = [row for row in rows if row["kind"] == kind]
        if chosen:
            paths.append(_sizes(chosen, kind, what, folder / f"sizes-{kind}.svg"))
    paths.append(_removed(accounts_table(build.root).to_pylist(), folder / "removed.svg"))
    blocks = block_table(build, stage)
    write_table(blocks, folder / "blocks")
    paths.append(_blocks(blocks.to_pylist(), folder / "blocks.svg"))
    return paths


def _sizes(rows: Sequence[dict[str, Any]], kind: str, what: str, path: Path) -> Path:
    """Whitespace tokens of each language or pair, largest first, coloured by resource category."""
    ordered = sorted(rows, key=lambda row: -row["tokens"])
    groups = {}
    for name, smallest in categories(kind).items():
        places = [place for place, row in enumerate(ordered) if row["category"] == name]
        groups[f"{name} (≥ {smallest:,}): {len(places)}"] = places
    return ranked_bars(
        path,
        [row["language"] for row in ordered],
        [max(row["tokens"], 1) for row in ordered],
        groups,
        x_label=f"{len(ordered)} {what}, largest first",
        y_label="whitespace-separated tokens",
        legend="resource category (tokens): " + what,
    )


def _removed(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Share of the documents entering a stage that each of its rules removed, by kind."""
    came: dict[tuple[str, str], int] = {}
    removed: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        key = (row["stage"], row["kind"])
        came[key] = came.get(key, 0) + row["documents"]
        if row["outcome"] != KEPT:
            of_rule = removed.setdefault((row["stage"], row["outcome"]), {})
            of_rule[row["kind"]] = of_rule.get(row["kind"], 0) + row["documents"]
    keys = sorted(removed, key=lambda key: (-STAGES.index(key[0]), sum(removed[key].values())))
    shares = {
        kind: [100 * removed[key].get(kind, 0) / max(came.get((key[0], kind), 0), 1) for key in keys]
        for kind in sorted({kind for _, kind in came})
    }
    return grouped_bars(
        path,
        [f"{rule} ({stage})" for stage, rule in keys],
        shares,
        x_label="% of the kind's documents that entered the stage",
    )


def _blocks(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Unicode blocks by their share of all letters, and the number of languages in which each comes first."""
    totals: dict[str, int] = {}
    first: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row["kind"] == "code":
            continue
        totals[row["block"]] = totals.get(row["block"], 0) + row["characters"]
        if (row["kind"], row["language"]) not in seen:
            seen.add((row["kind"], row["language"]))
            first[row["block"]] = first.get(row["block"], 0) + 1
    names = sorted(totals, key=lambda name: -totals[name])[:MANY][::-1]
    everything = sum(totals.values())
    return noted_bars(
        path,
        [(name, 100 * totals[name] / everything, str(first.get(name, 0))) for name in names],
        x_label="% of all letters; the number counts languages and pairs in which the block comes first",
    )
