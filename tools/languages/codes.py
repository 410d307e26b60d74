"""Language codes of benchmarks → the corpus's codes, resource category, script and family."""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from emma.base.errors import UserError

__all__ = ["CATEGORIES", "LANGUAGE_TABLE", "UNSEEN", "Language", "language", "language_table", "subject"]

LANGUAGE_TABLE = Path(__file__).parents[2] / "recipes" / "evaluation" / "languages.tsv"

UNSEEN = "unseen"
"""Category of languages with too little text to be trained on; those that the corpus lacks belong to it too."""

CATEGORIES = ("high", "medium-high", "medium", "medium-low", "low", UNSEEN)
"""The papers' resource categories of languages, the richest first."""

_ENGLISH = "eng"
_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_DIRECTION = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})-([a-z]{3}_[A-Z][a-z]{3})")


@dataclass(frozen=True)
class Language:
    """What is known about a code.

    Attributes:
        code: as the benchmark writes it.
        corpus: the code under which the papers' corpus has the language, None where it has none.
        category: one of `CATEGORIES`.
        script: ISO 15924, None where unknown.
        family: top-level family of Glottolog or `isolate`, None where unknown.
    """

    code: str
    corpus: str | None
    category: str
    script: str | None
    family: str | None

    @property
    def is_english(self) -> bool:
        """Whether it is English: reported apart, never in an average over languages that were to be won."""
        return (self.corpus or self.code).split("_")[0] == _ENGLISH


def subject(name: str) -> str:
    """Language that a row of results is about: of a translation direction with English the other side.

    Args:
        name: a code, or a direction `eng_Latn-deu_Latn`.
    """
    direction = _DIRECTION.fullmatch(name)
    if direction is None:
        return name
    source, target = direction.groups()
    return source if target.split("_")[0] == _ENGLISH else target


@functools.cache
def language_table() -> dict[str, Language]:
    """Rows of `recipes/evaluation/languages.tsv` by code.

    Raises:
        UserError: a row's corpus code has no category; the message names the row.
    """
    with LANGUAGE_TABLE.open(encoding="utf-8", newline="") as handle:
        lines = (line for line in handle if not line.startswith("#"))
        rows = list(csv.DictReader(lines, delimiter="\t"))
    categories = {row["code"]: row["category"] for row in rows if row["category"]}
    table = {}
    for row in rows:
        corpus = row["corpus"] or None
        if corpus and corpus not in categories:
            raise UserError(
                f"{LANGUAGE_TABLE}: {row['code']}: its corpus code {corpus} has no row with a category"
            )
        table[row["code"]] = Language(
            row["code"],
            corpus,
            categories[corpus] if corpus else UNSEEN,
            row["script"] or None,
            row["family"] or None,
        )
    return table


@functools.cache
def language(name: str) -> Language:
    """What is known about a code, or about the language that a direction is about.

    A code that the table lacks is read as `emma corpus languages` reads labels; one that stands for nothing there is
    kept as it is, unseen and of unknown family.
    """
    from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError, language_name

    code, table = subject(name), language_table()
    if code in table:
        return table[code]
    found = code.partition("_")[2] or None if _CODE.fullmatch(code) else None
    if found and language_name(code) == code:
        return Language(code, None, UNSEEN, found, None)
    for spelling in ("mala", "iso"):
        resolver = LanguageResolver(spelling="mala" if spelling == "mala" else "iso")
        try:
            resolved = resolver.resolve(code)
        except UnknownLanguageError:
            continue
        script = resolved.script or next(iter(resolver.scripts(resolved.language)), None)
        spelled = resolver.spell(resolved.language, script) if script else resolved.language
        if spelled in table:
            known = table[spelled]
            return Language(code, known.corpus, known.category, known.script, known.family)
        found = found or script
    return Language(code, None, UNSEEN, found, None)
