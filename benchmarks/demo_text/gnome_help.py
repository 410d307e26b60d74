"""GNOME's user help, from the Debian package `gnome-user-docs`: Mallard pages with the same names in every locale."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

__all__ = ["align", "page_names", "read_page"]

_MALLARD = "{http://projectmallard.org/1.0/}"
_BLOCKS = {f"{_MALLARD}{name}" for name in ("title", "desc", "p", "cite", "screen")}
# Credits, legal text and link targets are not prose.
_SKIPPED = {f"{_MALLARD}{name}" for name in ("credit", "revision", "link", "license", "include", "keywords")}


def page_names(package: Path) -> list[str]:
    """Names of the pages, from the English (`C`) folder."""
    return sorted(path.stem for path in (package / "usr/share/help/C/gnome-help").glob("*.page"))


def read_page(package: Path, locale: str, name: str) -> list[str]:
    """Blocks of text of a page in document order: title, description, paragraphs. Empty where the locale lacks it."""
    path = package / "usr/share/help" / locale / "gnome-help" / f"{name}.page"
    if not path.is_file():
        return []
    blocks: list[str] = []
    _collect(ElementTree.parse(path).getroot(), blocks)
    return blocks


def align(source: list[str], target: list[str]) -> list[tuple[str, str]]:
    """Pairs blocks by position; pages whose translation has another number of blocks, and blocks
    left untranslated, are dropped."""
    if len(source) != len(target):
        return []
    return [(left, right) for left, right in zip(source, target, strict=True) if left != right]


def _collect(element: ElementTree.Element, blocks: list[str]) -> None:
    for child in element:
        if child.tag in _BLOCKS:
            # Titles with a type (for links, for sorting) repeat the page's title.
            if child.get("type") is None and (text := " ".join("".join(child.itertext()).split())):
                blocks.append(text)
        elif child.tag not in _SKIPPED and isinstance(child.tag, str):
            _collect(child, blocks)
