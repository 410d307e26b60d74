"""Plots of a corpus: sizes of languages and pairs by resource category, removals by rule, Unicode blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emma.base.drawing import set_up_drawing
from emma.base.files import atomic_write
from emma.tools.corpus.accounts import KEPT
from emma.tools.corpus.blocks import block_table
from emma.tools.corpus.categories import categories
from emma.tools.corpus.layout import STAGES
from emma.tools.corpus.stage import Build
from emma.tools.corpus.statistics import accounts_table, statistics, write_table

__all__ = ["draw"]

_COLOURS = ("#08306b", "#2166ac", "#4393c3", "#92c5de", "#f4a582", "#d6604d", "#b2182b")
_MANY = 30


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


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    with atomic_write(path) as handle:
        figure.savefig(handle, format="svg", metadata={"Date": None})
    plt.close(figure)
    return path


def _sizes(rows: Sequence[dict[str, Any]], kind: str, what: str, path: Path) -> Path:
    """Whitespace tokens of each language or pair, largest first, coloured by resource category."""
    import matplotlib.pyplot as plt

    ordered = sorted(rows, key=lambda row: -row["tokens"])
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for (name, smallest), colour in zip(categories(kind).items(), _COLOURS, strict=False):
        places = [place for place, row in enumerate(ordered) if row["category"] == name]
        if places:
            sizes = [max(ordered[place]["tokens"], 1) for place in places]
            label = f"{name} (≥ {smallest:,}): {len(places)}"
            axes.bar(places, sizes, width=1.0, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_xlabel(f"{len(ordered)} {what}, largest first")
    axes.set_ylabel("whitespace-separated tokens")
    axes.legend(title="resource category (tokens): " + what, fontsize="small", title_fontsize="small")
    if len(ordered) <= _MANY:
        axes.set_xticks(
            range(len(ordered)), [row["language"] for row in ordered], rotation=90, fontsize="small"
        )
    return _save(figure, path)


def _removed(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Share of the documents entering a stage that each of its rules removed, by kind."""
    import matplotlib.pyplot as plt

    came: dict[tuple[str, str], int] = {}
    removed: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        key = (row["stage"], row["kind"])
        came[key] = came.get(key, 0) + row["documents"]
        if row["outcome"] != KEPT:
            of_rule = removed.setdefault((row["stage"], row["outcome"]), {})
            of_rule[row["kind"]] = of_rule.get(row["kind"], 0) + row["documents"]
    keys = sorted(removed, key=lambda key: (-STAGES.index(key[0]), sum(removed[key].values())))
    kinds = sorted({kind for _, kind in came})
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * max(len(keys), 1)))
    height = 0.8 / max(len(kinds), 1)
    for index, kind in enumerate(kinds):
        shares = [100 * removed[key].get(kind, 0) / max(came.get((key[0], kind), 0), 1) for key in keys]
        places = [place + index * height - 0.4 for place in range(len(keys))]
        axes.barh(places, shares, height=height, align="edge", label=kind)
    axes.set_yticks(range(len(keys)), [f"{rule} ({stage})" for stage, rule in keys], fontsize="small")
    axes.set_xlabel("% of the kind's documents that entered the stage")
    if keys:
        axes.legend(fontsize="small")
    return _save(figure, path)


def _blocks(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Unicode blocks by their share of all letters, and the number of languages in which each comes first."""
    import matplotlib.pyplot as plt

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
    names = sorted(totals, key=lambda name: -totals[name])[:_MANY][::-1]
    everything = sum(totals.values())
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * max(len(names), 1)))
    axes.barh(names, [100 * totals[name] / everything for name in names], color=_COLOURS[1])
    for place, name in enumerate(names):
        axes.text(
            100 * totals[name] / everything, place, f" {first.get(name, 0)}", va="center", fontsize="small"
        )
    axes.set_xscale("log")
    axes.set_xlim(right=400)  # room for the number next to a bar of 100 %
    axes.tick_params(axis="y", labelsize="small")
    axes.set_xlabel("% of all letters; the number counts languages and pairs in which the block comes first")
    return _save(figure, path)
