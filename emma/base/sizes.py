"""Numbers of bytes in words."""

from __future__ import annotations

__all__ = ["size_text"]


def size_text(size: int) -> str:
    """Bytes with the decimal unit that leaves three digits: `0 B`, `940 kB`, `1.25 GB`."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{value:.3g} {units[0]}"
