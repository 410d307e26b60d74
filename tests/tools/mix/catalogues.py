"""Catalogues in memory, of documents with given lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emma.tools.mix.catalogue import Catalogue
from emma.tools.mix.plan import PlannedSource
from emma.tools.mix.select import Choice
from emma.tools.mix.sources import Source


class _Component:
    """What a catalogue asks of a component of the store."""

    dtype = np.dtype(np.int32)

    def __init__(self, name: str) -> None:
        self.name = name


def make_catalogue(name: str, sizes: Mapping[str, Sequence[int] | np.ndarray]) -> Catalogue:
    """A catalogue of one shard: by language, the tokens of each document."""
    languages = sorted(sizes)
    tokens = np.concatenate([np.asarray(sizes[language], np.int32) for language in languages])
    code = np.repeat(np.arange(len(languages)), [len(sizes[language]) for language in languages])
    component: Any = _Component(name)
    return Catalogue(
        component,
        languages,
        code.astype(np.uint16),
        tokens,
        np.zeros(len(tokens), bool),
        np.array([0, len(tokens)]),
    )


def planned(catalogue: Catalogue, targets: Mapping[str, tuple[int, int]]) -> list[PlannedSource]:
    """Targets and caps in tokens by language."""
    name = catalogue.component.name
    rows = []
    for language, (target, cap) in targets.items():
        code = catalogue.languages.index(language)
        documents, tokens, _ = (int(each[code]) for each in catalogue.counts)
        rows.append(PlannedSource(Source(name, language, None, 0, documents, tokens), target, cap))
    return rows


def times(catalogue: Catalogue, choice: Choice) -> np.ndarray:
    """How often each document is read, with the closing source's last one, of which a part is read."""
    found = np.concatenate([choice.times(catalogue, part) for part in catalogue.parts])
    if choice.closing is not None and choice.closing.key[0] == catalogue.component.name:
        found[choice.closing.document] += 1
    return found


def tokens_read(catalogue: Catalogue, choice: Choice) -> dict[str, int]:
    """Tokens read of each language, counted document by document."""
    read = np.concatenate(
        [choice.times(catalogue, part) for part in catalogue.parts]
    ) * catalogue.tokens.astype(np.int64)
    sums = np.bincount(catalogue.language, read, len(catalogue.languages)).astype(np.int64)
    found = dict(zip(catalogue.languages, sums.tolist(), strict=True))
    if choice.closing is not None and choice.closing.key[0] == catalogue.component.name:
        found[choice.closing.key[1]] += choice.closing.tokens
    return found
