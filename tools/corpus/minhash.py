"""MinHash signatures of documents, and the band hashes that near duplicates share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from emma.recipes.schema.corpus import NearDuplicates
from emma.tools.corpus.shingles import Shingles, character_shingles, mix, word_shingles
from emma.tools.languages.scripts import SPACELESS

__all__ = ["bands", "jaccard", "shingle_sets", "shingles_of", "signatures"]

_SEED = 20240917


def shingles_of(texts: Sequence[str], settings: NearDuplicates, script: str) -> Shingles:
    """Shingles of texts: of characters in spaceless scripts, of words otherwise."""
    if script in SPACELESS:
        return character_shingles(texts, settings.character_shingle)
    return word_shingles(texts, settings.word_shingle)


def signatures(shingles: Shingles, permutations: int) -> NDArray[np.uint32]:
    """MinHash signatures (documents × permutations)."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.hashes, shingles.offsets.astype(np.uint64), permutations, _SEED
    )
    values = itertools.chain.from_iterable(matrix.to_rows())
    return np.fromiter(values, np.uint32, len(shingles) * permutations).reshape(-1, permutations)


def bands(shingles: Shingles, settings: NearDuplicates) -> NDArray[np.uint64]:
    """Hash of each band of each document's signature (documents × bands)."""
    rows = signatures(shingles, settings.bands * settings.rows).astype(np.uint64)
    hashes = np.zeros((len(shingles), settings.bands), np.uint64)
    for row in range(settings.rows):
        hashes = mix(hashes ^ rows[:, row :: settings.rows])
    return hashes


def shingle_sets(shingles: Shingles) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sorted sets of 32-bit shingle hashes, concatenated, and their offsets (documents + 1)."""
    sets = [np.unique((shingles.of(row) >> np.uint64(32)).astype(np.uint32)) for row in range(len(shingles))]
    offsets = np.zeros(len(sets) + 1, np.int64)
    np.cumsum([len(one) for one in sets], out=offsets[1:])
    return np.concatenate(sets) if sets else np.zeros(0, np.uint32), offsets


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Jaccard index of two sorted sets."""
    if not len(one) or not len(other):
        return 0.0
    shorter, longer = (one, other) if len(one) <= len(other) else (other, one)
    at = np.searchsorted(longer, shorter)
    at[at == len(longer)] = 0
    common = int((longer[at] == shorter).sum())
    return common / (len(one) + len(other) - common)
