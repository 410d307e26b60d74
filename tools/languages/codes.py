"""Maps benchmarks' language codes to the corpus's codes, resource categories, scripts and families."""

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
"""Category of languages with too little text to train on, including those that the corpus lacks."""

CATEGORIES = ("high", "medium-high", "medium", "medium-low", "low", UNSEEN)
"""The papers' resource categories of languages, richest first."""

_ENGLISH = "eng"
_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_VARIANT = r"[a-z]{3}_[A-Z][a-z]{3}(?:_[a-z0-9]+)?"
_DIRECTION = re.compile(rf"({_VARIANT})-({_VARIANT})")


@dataclass(frozen=True)
class Language:
    """What is known about a code.

    Attributes:
        code: as the benchmark writes it.
        corpus: the language's code in the papers' corpus; None if the corpus lacks it.
        category: one of `CATEGORIES`.
        script: ISO 15924 code; None if unknown.
        family: Glottolog's top-level family or `isolate`; None if unknown.
    """

    code: str
    corpus: str | None
    category: str
    script: str | None
    family: str | None

    @property
    def is_english(self) -> bool:
        """Whether it is English, which is reported apart from the averages over all other languages."""
        return (self.corpus or self.code).split("_")[0] == _ENGLISH


def subject(name: str) -> str:
    """Language that a row of results is about; for a translation direction with English, the other side.

    Args:
        name: a code, or a direction such as `eng_Latn-deu_Latn`.
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
        UserError: the corpus code of a row has no category; the message names the row.
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
                f"{LANGUAGE_TABLE}: {row['code']}: no row gives a category for its corpus code {corpus}"
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
    """What is known about a code, or about the language that a translation direction is about.

    A code that the table lacks is resolved as `emma corpus languages` resolves labels. If that fails too, the
    code is kept as it is, unseen and of unknown family.
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
