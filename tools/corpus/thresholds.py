"""Filter limits for a kind and a language: the tables' values, overridden by the recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emma.recipes.corpus_tables import table
from emma.recipes.schema.corpus import Corpus, Thresholds
from emma.tools.languages.scripts import family, script_of

__all__ = ["thresholds_for"]


def thresholds_for(
    corpus: Corpus,
    kind: str,
    language: str,
    side: str | None = None,
    own: Mapping[str, float] | None = None,
) -> Thresholds:
    """Limits for the documents of a kind and language.

    Args:
        corpus: the recipe's overrides.
        kind: kind of text.
        language: language or pair.
        side: for a pair, the language of the side that the limits are for.
        own: limits from the language's own text; they replace those by kind, not those that the
            recipe gives for the language.
    """
    tables = table("filters")
    values: dict[str, Any] = dict(tables["kinds"][kind])
    if kind != "code":
        of_family = dict(tables["families"].get(family(script_of(side or language)), {}))
        factor = of_family.pop("min_characters_factor", 1)
        if values.get("min_characters"):
            values["min_characters"] = max(1, int(values["min_characters"] * factor))
        values |= {key: value for key, value in of_family.items() if values.get(key) is not None}
    values |= tables["languages"].get(side or language, {}) if kind != "code" else {}
    if (of_kind := corpus.filters.get(kind)) is not None:  # type: ignore[call-overload]
        values |= of_kind.model_dump(include=of_kind.model_fields_set)
    values |= {key: value for key, value in (own or {}).items() if values.get(key) is not None}
    if (override := corpus.language_filters.get(language)) is not None:
        values |= override.model_dump(include=override.model_fields_set)
    if side is not None and side in corpus.language_filters:
        override = corpus.language_filters[side]
        values |= override.model_dump(include=override.model_fields_set)
    return Thresholds(**values)
