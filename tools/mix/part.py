"""A part of a store: the same few documents of every source, whatever the seed of a mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from emma.base.threads import in_order
from emma.tools.mix.catalogue import Catalogue, Part
from emma.tools.mix.select import numbers_of, salts_of

__all__ = ["part_of"]

_SEED = 0
"""Not that of the mix: mixes of several seeds see the same part."""


def part_of(catalogues: Mapping[str, Catalogue], part: float) -> dict[str, Catalogue]:
    """The catalogues (by component) with the documents marked as consumed that are not in a part of the store.

    Each document has a random number of its own: those below `part` of the range are in it, and of a source that has none
    there, the one with the smallest.
    """
    if part >= 1:
        return dict(catalogues)
    return {name: _part(catalogue, part) for name, catalogue in catalogues.items()}


def _part(catalogue: Catalogue, part: float) -> Catalogue:
    salts = salts_of(_SEED, f"part of {catalogue.component.name}", catalogue.languages)
    size, threshold = len(catalogue.languages), np.uint64(min(int(part * 2**64), 2**64 - 1))
    consumed = (
        np.zeros(len(catalogue.tokens), bool) if catalogue.consumed is None else catalogue.consumed.copy()
    )
    smallest, place = np.full(size, 2**64 - 1, np.uint64), np.full(size, -1)

    def look(each: Part) -> tuple[Part, np.ndarray, np.ndarray]:
        mine = np.flatnonzero(catalogue.training(each))
        code = catalogue.language[each.start : each.stop]
        return each, mine, numbers_of(each, salts[code])[mine]

    for each, mine, numbers in in_order(look, catalogue.parts):
        consumed[each.start + mine[numbers >= threshold]] = True
        code = catalogue.language[each.start + mine]
        order = np.lexsort((numbers, code))
        first = order[np.append(True, np.diff(code[order].astype(np.int64)) > 0)] if len(order) else order
        nearer = first[(numbers[first] < smallest[code[first]]) | (place[code[first]] < 0)]
        smallest[code[nearer]] = numbers[nearer]
        place[code[nearer]] = each.start + mine[nearer]
    consumed[place[place >= 0]] = False
    return replace(catalogue, consumed=consumed)
