"""Resource categories by white-space separated tokens, with the papers' thresholds."""

from __future__ import annotations

from emma.recipes.corpus_tables import table

__all__ = ["categories", "category"]


def categories(kind: str) -> dict[str, int]:
    """Category → smallest number of tokens, the largest category first; kinds other than `parallel` share one table."""
    found: dict[str, int] = table("categories")["parallel" if kind == "parallel" else "monolingual"]
    return found


def category(kind: str, tokens: int) -> str:
    """Category of a language of a kind, or of a pair (tokens of both sides together)."""
    return next(name for name, smallest in categories(kind).items() if tokens >= smallest)
