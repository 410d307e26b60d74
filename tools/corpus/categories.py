"""Resource categories by whitespace-separated tokens, with the papers' thresholds."""

from __future__ import annotations

from emma.recipes.corpus_tables import table

__all__ = ["categories", "category"]


def categories(kind: str) -> dict[str, int]:
    """Category → minimum tokens, largest category first; all kinds but `parallel` share one table."""
    found: dict[str, int] = table("categories")["parallel" if kind == "parallel" else "monolingual"]
    return found


def category(kind: str, tokens: int) -> str:
    """Category of a language, or of a pair (whose tokens are those of both sides)."""
    return next(name for name, smallest in categories(kind).items() if tokens >= smallest)
