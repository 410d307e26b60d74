"""What makes two texts the same: a 128-bit key of their letters and digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from emma.tools.languages.codepoints import DIGIT, LETTER, MARK, SPACE, CodePoints

__all__ = ["pair_keys", "text_keys"]


def text_keys(texts: Sequence[str], kind: str) -> NDArray[np.uint64]:
    """Keys of texts (documents × 2, uint64).

    Keys are equal if the texts are equal apart from case, whitespace and punctuation (code: only apart
    from whitespace). The key of a text without letters or digits is that of all its characters.
    """
    code = kind == "code"
    points = CodePoints.of(texts if code else [text.lower() for text in texts])
    kinds = points.class_of
    keep = kinds != SPACE if code else (kinds == LETTER) | (kinds == MARK) | (kinds == DIGIT)
    lengths = points.count(keep)
    values = memoryview(np.ascontiguousarray(points.values[keep])).cast("B")
    ends = np.cumsum(lengths) * 4
    digests = bytearray()
    start = 0
    digest = xxhash.xxh3_128_digest
    for row, end in enumerate(ends.tolist()):
        digests += (
            digest(values[start:end]) if end > start else digest(texts[row].encode("utf-8", "surrogatepass"))
        )
        start = end
    return np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)


def pair_keys(sources: NDArray[np.uint64], targets: NDArray[np.uint64], swapped: bool) -> NDArray[np.uint64]:
    """Keys of pairs (pairs × 2, uint64) from the keys of their sides.

    `swapped` exchanges the sides first, so that a pair and its reverse have the same key.
    """
    one, other = (targets, sources) if swapped else (sources, targets)
    both = np.ascontiguousarray(np.concatenate([one, other], axis=1))
    digests = b"".join(xxhash.xxh3_128_digest(row) for row in both)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)
