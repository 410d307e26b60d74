"""Licence identifiers in the Hub's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

__all__ = ["hub_license", "hub_licenses", "known_licenses"]

OTHER = "other"
_OPERATORS = re.compile(r"\s+(?:OR|AND)\s+")


@cache
def _table() -> tuple[frozenset[str], dict[str, str]]:
    path = Path(__file__).with_name("licenses.yaml")
    values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return frozenset(values["known"].split()), values["spellings"]


def known_licenses() -> frozenset[str]:
    """All licence identifiers that the Hub knows."""
    return _table()[0]


def hub_license(name: str) -> set[str]:
    """Hub identifiers for a licence given as an SPDX identifier or expression, or as the Hub's own; `other`
    if the Hub has none.

    For an expression (`MIT OR Apache-2.0`), returns all its licences; exceptions after `WITH` have none.
    """
    known, spellings = _table()
    found = set()
    for operand in _OPERATORS.split(re.sub(r"[()]", " ", name.strip())):
        plain = re.sub(r"(-only|-or-later|\+)$", "", operand.partition(" WITH ")[0].strip().lower())
        plain = spellings.get(plain, plain)
        found.add(plain if plain in known else OTHER)
    return found


def hub_licenses(names: Iterable[str]) -> str | list[str]:
    """The `license` metadata for text under several licences: one identifier, or a sorted list."""
    found = sorted(set[str]().union(*map(hub_license, names)))
    return found[0] if len(found) == 1 else found
