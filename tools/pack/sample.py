"""The documents that are encoded twice: drawn at random throughout a pack, so many that a fault in a small share of
them is found."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from emma.tools.pack.columns import as_array
from emma.tools.pack.encoded import Bounded
from emma.tools.pack.encoder import Encoder
from emma.tools.pack.pieces import pieces_of

__all__ = ["CERTAINTY", "Draw", "WrongIdsError", "chance_of_finding", "compare", "share_needed"]

CERTAINTY = 0.999
"""A fault in `fault_share` of the documents is found with a probability above this."""

PACK_SEED = 0
"""Seed of the documents that are drawn while a store is packed."""


class WrongIdsError(Exception):
    """A fast engine gave a document other ids than the reference. The argument says which, in words."""


def share_needed(documents: int, fault_share: float) -> float:
    """Share of documents to draw so that a fault in `fault_share` of them is found.

    Each document is drawn by itself with the returned probability p; k = ⌈documents · fault_share⌉ faulty ones are all
    missed with the probability (1 − p)^k, which is to be below 1 − `CERTAINTY`.
    """
    if not documents:
        return 0.0
    share = 1 - (0.95 * (1 - CERTAINTY)) ** (1 / math.ceil(documents * fault_share))
    return 1.0 if share > 0.9 else share


def chance_of_finding(share: float, documents: int, fault_share: float) -> float:
    """Probability that at least one of the faulty documents is drawn (see `share_needed`)."""
    return 1 - (1 - share) ** math.ceil(documents * fault_share)


@dataclass
class Draw:
    """Draws the documents of one work unit, in their order.

    Args:
        seed: of the draw.
        unit: number of the unit.
        high: a document is drawn where its random number, uniform in [0, 1), is below this
        low: and not below this. What a draw up to `low` left out is drawn by one from there.
    """

    seed: int
    unit: int
    high: float
    low: float = 0.0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng([self.seed, self.unit])

    def next(self, count: int) -> np.ndarray:
        """Which of the next `count` documents are drawn, as bools."""
        numbers = self._generator.random(count)
        return (numbers >= self.low) & (numbers < self.high)


def compare(documents: pa.Table, encoded: Bounded, drawn: np.ndarray, encoder: Encoder) -> int:
    """Compares those among drawn documents that the fast engine has encoded with the reference, piece by piece where its
    tokenizer allows that (`pieces.py`); returns their number.

    Args:
        documents: a table of documents.
        encoded: their ids.
        drawn: which are drawn.
        encoder: that gave the ids.

    Raises:
        WrongIdsError: the ids differ.
    """
    rows = np.flatnonzero(drawn & ~encoder.by_reference(as_array(documents["language"])))
    if not len(rows):
        return 0
    texts = as_array(documents["text"]).take(pa.array(rows))
    whole = np.ones(len(rows), bool)
    own = encoded.some(rows)
    if (pieces := pieces_of(encoder.tokenizer)) is not None:
        whole = pieces.unsure(texts, own)
        whole |= pieces.turns(own.lengths)
    expected = encoder.reference.encode(texts.filter(pa.array(whole)))
    for place, row in enumerate(np.flatnonzero(whole).tolist()):
        right = expected.ids[expected.offsets[place] : expected.offsets[place + 1]]
        found = own.ids[own.offsets[row] : own.offsets[row + 1]]
        if not np.array_equal(right, found):
            name = documents["document_id"][int(rows[row])].as_py()
            raise WrongIdsError(f"{encoder.name} gave the document {name} other ids than the reference")
    return len(rows)
