"""Statistics as text tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from emma.tools.corpus.categories import categories
from emma.tools.corpus.statistics import Published

__all__ = ["category_lines", "comparison_lines", "language_lines"]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns: text to the left; numbers to the right, with thousands separators."""
    cells = [list(header)]
    for row in rows:
        cells.append(
            [f"{v:,}" if isinstance(v, int) else f"{v:.3f}" if isinstance(v, float) else v or "" for v in row]
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [all(row[c][:1].isdigit() or not row[c] for row in cells[1:]) for c in range(len(header))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def category_lines(rows: Sequence[dict[str, Any]]) -> str:
    """One row per kind and resource category."""
    names = ("kind", "category", "languages", "documents", "characters", "bytes", "tokens")
    return _table(names, [[row[name] for name in names] for row in rows])


def language_lines(rows: Sequence[dict[str, Any]]) -> str:
    """One row per kind and language or pair, largest first."""
    names = ["kind", "language", "documents", "characters", "bytes", "tokens", "category"]
    names += [name for name in ("tokenizer_tokens", "tokens_per_byte") if rows and name in rows[0]]
    ordered = sorted(rows, key=lambda row: (row["kind"], -row["tokens"], row["language"]))
    return _table(names, [[row[name] for name in names] for row in ordered])


def comparison_lines(other: Published, compared: Sequence[dict[str, Any]]) -> str:
    """Published and own categories, then each language of this corpus with its published numbers."""
    published = other.by_category()
    here = {name: 0 for name in categories(other.kind)}
    for row in compared:
        if row["category"] is not None:
            here[row["category"]] += 1
    counts = _table(
        ("category", "published", "here", "published tokens"),
        [[name, entry["languages"], here[name], entry["tokens"]] for name, entry in published.items()],
    )
    both = [row for row in compared if row["tokens"] is not None]
    names = ("language", "tokens", "published_tokens", "ratio", "category", "published_category")
    both.sort(
        key=lambda row: (row["published_tokens"] is None, -(row["published_tokens"] or 0), row["language"])
    )
    missing = sum(1 for row in compared if row["tokens"] is None)
    return (
        f"{counts}\n\n{_table(names, [[row[name] for name in names] for row in both])}\n\n"
        f"published {'pairs' if other.kind == 'parallel' else 'languages'} that are not in this corpus: {missing}"
    )
