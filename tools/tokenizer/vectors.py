"""Old tokens that a new token resembles, by the company that both keep: PPMI, truncated SVD, sparsemax of cosines.

This follows FOCUS (Dobler and de Melo 2023, arXiv 2305.14481), which takes vectors that fastText learns on the target
corpus; here a factorised matrix of co-occurrences stands in for them (Levy and Goldberg 2014), which needs no other
package and gives the same vectors each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emma.base.errors import UserError
from emma.tools.pack.engine import load_engine, usable_engine
from emma.tools.tokenizer.extend import Extended
from emma.tools.tokenizer.words import by_language, documents

__all__ = ["Combination", "auxiliary", "sparsemax"]

Combination = tuple[Sequence[int], Sequence[float]] | None
"""Ids of old tokens and their weights, which add up to 1; None: too rarely seen."""

_WINDOW = 3
_DIMENSIONS = 100
_SEEN = 5
_BYTES_A_LANGUAGE = 256 << 10
_BATCH = 256


def auxiliary(extended: Extended, corpus: Path) -> list[Combination]:
    """A combination of old tokens for each new token; None for one seen fewer than five times.

    Args:
        extended: the extended tokenizer.
        corpus: its training documents are read, at most 256 KiB of each language.

    Raises:
        UserError: the corpus is not there.
    """
    counts, ids = _co_occurrences(extended, corpus)
    vectors = _factors(counts)
    seen = np.asarray(counts.sum(1)).ravel()  # in weighted neighbours
    del counts
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    place = {int(id_): number for number, id_ in enumerate(ids)}
    old = np.flatnonzero((ids < extended.first) & (seen >= _SEEN))
    if not len(old):
        raise UserError(f"{corpus}: too little text for vectors of tokens; use --initialise subword")
    found: list[Combination] = []
    for row in extended.rows:
        number = place.get(row["id"])
        if number is None or seen[number] < _SEEN:
            found.append(None)
            continue
        weights = sparsemax(vectors[old] @ vectors[number])
        kept = np.flatnonzero(weights)
        found.append((ids[old[kept]].tolist(), weights[kept].tolist()))
    return found


def sparsemax(scores: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex (Martins and Astudillo 2016, arXiv 1602.02068): weights that add up to 1, most
    of them 0.

    Args:
        scores: float [n].
    """
    ordered = np.sort(scores)[::-1]
    sums = np.cumsum(ordered)
    size = np.flatnonzero(1 + np.arange(1, len(scores) + 1) * ordered > sums)[-1] + 1
    return np.maximum(scores - (sums[size - 1] - 1) / size, 0.0)


def _co_occurrences(extended: Extended, corpus: Path) -> tuple[Any, np.ndarray]:
    """Symmetric counts of neighbours, weighted by 1/distance, as a sparse matrix; and the ids of its rows."""
    from scipy import sparse

    file = extended.file
    engine = load_engine(usable_engine("fastest", file)[0], file)
    ids = []
    for parts in by_language(corpus).values():
        size = 0
        batch: list[str] = []
        for part, column in parts:
            for text in documents(corpus, part, column, "train"):
                if size >= _BYTES_A_LANGUAGE:
                    break
                batch.append(text)
                size += len(text.encode())
        for start in range(0, len(batch), _BATCH):
            encoded = engine.encode(pa.array(batch[start : start + _BATCH], pa.large_string()))
            for number in range(len(encoded.lengths)):
                own = encoded.ids[encoded.offsets[number] : encoded.offsets[number + 1]].astype(np.int64)
                ids += [own, np.full(_WINDOW, -1)]  # documents don't see each other
    stream = np.concatenate(ids) if ids else np.empty(0, np.int64)
    known, places = np.unique(stream, return_inverse=True)
    rows, columns, values = [], [], []
    for distance in range(1, _WINDOW + 1):
        left, right = places[:-distance], places[distance:]
        within = (stream[:-distance] >= 0) & (stream[distance:] >= 0)
        rows += [left[within], right[within]]
        columns += [right[within], left[within]]
        values.append(np.full(2 * int(within.sum()), 1 / distance))
    if not rows or not len(known):
        raise UserError(f"{corpus}: no training text")
    matrix = sparse.coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(known), len(known)),
    ).tocsr()
    return matrix, known


def _factors(counts: Any) -> np.ndarray:
    """Positive pointwise mutual information, factorised: float [tokens, at most 100]."""
    from scipy.sparse.linalg import svds

    total = counts.sum()
    frequency = np.asarray(counts.sum(1)).ravel()
    matrix = counts.tocoo()
    information = np.log(matrix.data * total / (frequency[matrix.row] * frequency[matrix.col]))
    matrix.data = np.maximum(information, 0.0)
    size = min(_DIMENSIONS, matrix.shape[0] - 1)
    left, values, _ = svds(matrix.tocsr(), k=size, v0=np.ones(matrix.shape[0]))
    return left * np.sqrt(values)
