"""Results as text tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emma.tools.evaluation.gains import Gains, GroupGain, LanguageGain
from emma.tools.evaluation.groups import LANGUAGE_KINDS
from emma.tools.evaluation.results import Result
from emma.tools.evaluation.significance import tally

__all__ = ["gains_table", "scores_table", "text_table"]


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns: the first left-aligned, the others right-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])


def scores_table(model: str, rows: Sequence[Result], most: int) -> str:
    """Bits per byte by language, with the mean: one table per kind.

    Args:
        model: name for the heading.
        rows: rows of this model.
        most: maximum number of languages to list per kind; 0 lists all.
    """
    parts = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        chosen = [row for row in rows if row.benchmark == benchmark and row.metric == "bits_per_byte"]
        if not chosen:
            continue
        chosen.sort(key=lambda row: row.value)
        body = [
            [row.language, str(row.n), f"{row.value:.4f}", _error(row.error)] for row in _ends(chosen, most)
        ]
        mean = sum(row.value for row in chosen) / len(chosen)
        body.append([f"mean of {len(chosen)}", str(sum(row.n for row in chosen)), f"{mean:.4f}", ""])
        heading = f"{model}, {benchmark.removeprefix('heldout/')}: bits per byte on held-out text"
        parts.append(heading + "\n" + text_table(["language", "documents", "bits/byte", "±"], body))
    return "\n\n".join(parts)


def gains_table(gains: Gains, most: int) -> str:
    """Base compared with trained: groups first, then languages from the largest gain to the largest loss.

    Args:
        gains: the comparison.
        most: maximum number of languages to list per kind; 0 lists all.
    """
    parts = [f"{gains.base} → {gains.trained}: bits per byte on held-out text (lower is better)"]
    header = ["", "languages", "base", "trained", "change", "±", "lower", "clear gains", "clear losses"]
    for kind in dict.fromkeys(group.kind for group in gains.groups if group.kind in LANGUAGE_KINDS):
        groups = [_group_cells(group.group, group) for group in gains.groups if group.kind == kind]
        parts.append(text_table([kind, *header[1:]], groups))
        languages = sorted(
            (row for row in gains.languages if row.kind == kind), key=lambda row: row.difference
        )
        body = [_language_cells(row) for row in _ends(languages, most)]
        parts.append(text_table(["language", "category", "base", "trained", "change", "±"], body))
        if most and len(languages) > most:
            parts[-1] += (
                f"\n({len(languages) - most} in between not shown; all are in results.csv and gains.json)"
            )
    others = [_group_cells(group.kind, group) for group in gains.groups if group.kind not in LANGUAGE_KINDS]
    if others:
        parts.append(text_table(["other text", *header[1:]], others))
    return "\n\n".join([*parts, "Verdicts: " + tally(gains.languages).sentence])


def _ends[T](rows: Sequence[T], most: int) -> list[T]:
    """The first and last rows, `most` in all."""
    if not most or len(rows) <= most:
        return list(rows)
    head = -(-most // 2)
    tail = most - head
    return [*rows[:head], *(rows[-tail:] if tail else [])]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _group_cells(name: str, group: GroupGain) -> list[str]:
    return [
        name,
        str(group.languages),
        f"{group.base:.4f}",
        f"{group.trained:.4f}",
        f"{group.difference:+.4f}",
        _error(group.error),
        str(group.lower),
        str(group.wins),
        str(group.losses),
    ]


def _language_cells(row: LanguageGain) -> list[str]:
    return [
        row.language,
        row.category or "",
        f"{row.base:.4f}",
        f"{row.trained:.4f}",
        f"{row.difference:+.4f}",
        _error(row.error),
    ]
