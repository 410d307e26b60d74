"""Averages over languages, equally weighted: overall, by resource category, script, family, seen or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from emma.tools.languages.codes import CATEGORIES, language

__all__ = [
    "ALL",
    "ENGLISH_GROUP",
    "OTHERS",
    "Average",
    "averages",
    "category_of",
    "groups_of",
    "published_category",
]

ALL = "all"
"""All languages, including English: what the papers' `Avg` columns hold."""

OTHERS = "all but English"
ENGLISH_GROUP = "English"


@dataclass(frozen=True)
class Average:
    """Mean value of a group of languages.

    `dimension` is `overall`, `category`, `script`, `family`, `mix` or `base`.
    """

    dimension: str
    group: str
    languages: int
    value: float


def category_of(code: str) -> str | None:
    """The papers' resource category of a language or translation direction, looked up by its corpus code."""
    return language(code).category


def published_category(code: str) -> str | None:
    """Category of a code that the published list spells exactly the same way; None for all other codes.

    Benchmarks spell 10 to 15 % of their languages differently (`zho_Hans`, `jpn_Jpan`, `pes_Arab`), so
    averages by this category leave those out. Use it only to compare with figures computed the same way.
    """
    found = language(code)
    return found.category if found.corpus == found.code else None


def groups_of(
    languages: Iterable[str],
    *,
    trained: frozenset[str] | None = None,
    seen: frozenset[str] | None = None,
    category: Callable[[str], str | None] = category_of,
) -> dict[tuple[str, str], list[str]]:
    """Members of each group, by (dimension, group). English belongs only to `all` and `English`.

    Args:
        languages: codes or translation directions.
        trained: languages of the run's mix, in any spelling.
        seen: languages that the base was pre-trained on, in any spelling.
        category: resource category of a code.
    """
    names = list(dict.fromkeys(languages))
    groups: dict[tuple[str, str], list[str]] = {("overall", ALL): names}
    in_mix = None if trained is None else {_key(code) for code in trained}
    by_base = None if seen is None else {_key(code) for code in seen}
    for name in names:
        found = language(name)
        if found.is_english:
            groups.setdefault(("overall", ENGLISH_GROUP), []).append(name)
            continue
        keys = [
            ("overall", OTHERS),
            ("category", category(name)),
            ("script", found.script),
            ("family", found.family),
        ]
        if in_mix is not None:
            keys.append(("mix", "in the mix" if _key(name) in in_mix else "not in the mix"))
        if by_base is not None:
            keys.append(("base", "seen by the base" if _key(name) in by_base else "unseen by the base"))
        for dimension, group in keys:
            if group is not None:
                groups.setdefault((dimension, group), []).append(name)
    return dict(sorted(groups.items(), key=lambda item: _order(item[0], len(item[1]))))


def averages(
    values: Mapping[str, float],
    *,
    trained: frozenset[str] | None = None,
    seen: frozenset[str] | None = None,
    category: Callable[[str], str | None] = category_of,
) -> list[Average]:
    """Averages of one model's per-language values over the groups of `groups_of`."""
    groups = groups_of(values, trained=trained, seen=seen, category=category)
    return [
        Average(dimension, group, len(members), sum(values[name] for name in members) / len(members))
        for (dimension, group), members in groups.items()
    ]


def _key(name: str) -> str:
    found = language(name)
    return found.corpus or found.code


def _order(key: tuple[str, str], members: int) -> tuple[int, int, int, str]:
    """Sort key: overall first, categories from rich to poor, seen before unseen, larger groups first."""
    dimension, group = key
    place = ["overall", "category", "mix", "base", "script", "family"].index(dimension)
    if dimension == "overall":
        return place, [ALL, OTHERS, ENGLISH_GROUP].index(group), 0, group
    if dimension == "category":
        return place, CATEGORIES.index(group) if group in CATEGORIES else len(CATEGORIES), 0, group
    if dimension in ("mix", "base"):
        return place, int(group.startswith(("not", "unseen"))), 0, group
    return place, 0, -members, group
