"""Where a language is spoken, what it descends from, and how many people use it, as far as open data says.

The tables are in `recipes/languages/`, with their sources and licences; `glottolog.py` beside this file writes them.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emma.base.files import read_json
from emma.tools.languages.codes import language
from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError

__all__ = ["FOLDER", "ISOLATES", "SOURCES", "Place", "coastlines", "place"]

FOLDER = Path(__file__).parents[2] / "recipes" / "languages"

ISOLATES = "isolate"
"""Stands for the family of languages that have no relatives."""

SOURCES = (
    (
        "places and branches",
        "Glottolog 4.0, Hammarström, Forkel and Haspelmath",
        "CC BY 4.0",
        "https://glottolog.org",
    ),
    ("people who use a language", "Unicode CLDR", "Unicode License V3", "https://cldr.unicode.org"),
    ("coastlines", "Natural Earth 4.1.0", "public domain", "https://www.naturalearthdata.com"),
)
"""What the tables are from: subject, source, licence, address."""

# Spurious and unclassified languages are no family, and nobody lives where an artificial language was thought of.
_NO_FAMILY = ("Bookkeeping", "Unclassifiable", "Unattested")
_NOWHERE = ("Artificial Language", "Bookkeeping")


@dataclass(frozen=True)
class Place:
    """What is known about a language; what is not known is None or empty.

    Attributes:
        of: ISO 639-3 code that the facts are about: for a macro-language, that of its standard language.
        latitude, longitude: degrees north and east of the point by which Glottolog represents the language.
        branches: (code, name) of its ancestors, the family first.
        speakers: people who use it, as a first or a further language.
    """

    of: str
    latitude: float | None
    longitude: float | None
    branches: tuple[tuple[str, str], ...]
    speakers: int | None


@functools.cache
def place(code: str) -> Place:
    """Place, ancestors and speakers of a language.

    The family is that of `codes.language`, whose table is of a later Glottolog; below it, branches are as in 4.0.

    Args:
        code: of a corpus or a benchmark, e.g. `yor_Latn` or `scottish_gaelic`.
    """
    rows, users = _table("glottolog"), _table("speakers")
    known = language(code)
    spellings = list(_spellings(code))
    placed = [one for one in spellings if one in rows and rows[one]["latitude"]]
    of = next(iter([*placed, *(one for one in spellings if one in rows), *spellings]))
    row = rows.get(of)
    branches = _branches(row["parent"] if row else "", known.family)
    here = row if row and placed and not (branches and branches[0][1] in _NOWHERE) else None
    return Place(
        of,
        float(here["latitude"]) if here else None,
        float(here["longitude"]) if here else None,
        branches,
        next((int(users[one]["speakers"]) for one in spellings if one in users), None),
    )


def _spellings(code: str) -> Iterator[str]:
    """ISO 639-3 codes under which a language may be known: its own, the corpus's, that of its standard language."""
    for name in dict.fromkeys((code, language(code).corpus or code)):
        own = name.split("_")[0]
        yield own
        try:
            yield LanguageResolver().resolve(own).language
        except UnknownLanguageError:
            continue


def _branches(parent: str, family: str | None) -> tuple[tuple[str, str], ...]:
    """Ancestors from `parent` up, the family first; those above or instead of `family` are replaced by it."""
    found: list[tuple[str, str]] = []
    while parent:
        row = _table("glottolog")[parent]
        found.insert(0, (parent, row["name"]))
        parent = row["parent"]
    if found and found[0][1] in _NO_FAMILY:
        found = []
    if family is None or (found and found[0][1] == family):
        return tuple(found)
    names = [name for _, name in found]
    below = found[names.index(family) + 1 :] if family in names else found[1:]
    return ((family, family), *(() if family == ISOLATES else below))


@functools.cache
def _table(name: str) -> dict[str, dict[str, str]]:
    """Rows of `recipes/languages/NAME.tsv` by code."""
    with (FOLDER / f"{name}.tsv").open(encoding="utf-8", newline="") as handle:
        lines = (line for line in handle if not line.startswith("#"))
        return {row["code"]: row for row in csv.DictReader(lines, delimiter="\t")}


@functools.cache
def coastlines() -> list[list[tuple[float, float]]]:
    """Rings of land as (longitude, latitude) in degrees."""
    rings = read_json(FOLDER / "coastlines.json")["rings"]
    return [[(x / 10, y / 10) for x, y in zip(ring[::2], ring[1::2], strict=True)] for ring in rings]
