"""A source at its cap is rounded down, however near the next document lies."""

from __future__ import annotations

import numpy as np
import pytest

from emma.tools.mix.plan import PlannedSource
from emma.tools.mix.select import Selection, select_documents
from emma.tools.mix.sources import Source


class Documents:
    """Documents of these sizes, in place of a component's catalogue."""

    def __init__(self, sizes: np.ndarray) -> None:
        self.tokens = sizes.astype(np.int32)

    def of_language(self, language: str, *, validation: bool) -> np.ndarray:
        assert (language, validation) == ("l", False)
        return np.arange(len(self.tokens))


def _first_of_two(sizes: np.ndarray, target: int, cap: int, seed: int) -> Selection:
    """What a source gets when a far larger one follows it and makes up the total."""
    small, large = Documents(sizes), Documents(np.full(10_000, 100))
    planned = [
        PlannedSource(Source("small", "l", None, 0, len(sizes), int(sizes.sum())), target, cap),
        PlannedSource(Source("large", "l", None, 0, 10_000, 1_000_000), 500_000, 1_000_000),
    ]
    first, last = select_documents({"small": small, "large": large}, planned, seed, target + 500_000)
    # The mix reaches its total to within a document, so what the cap withheld came from the other source.
    assert target + 500_000 <= first.tokens + last.tokens < target + 500_000 + 100
    return first


@pytest.mark.parametrize("epochs", [0.3, 0.75, 1.0, 1.5, 3.9])
def test_rounding_never_exceeds_the_cap(epochs: float) -> None:
    nearest_is_above = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        sizes = generator.integers(50, 1000, 30)
        target = int(sizes.sum() * epochs)
        capped = _first_of_two(sizes, target, target, seed)
        free = _first_of_two(sizes, target, 10 * target, seed)
        assert capped.tokens <= target
        # Where there is room, the nearest count is taken, above or below; the cap can only remove the last document.
        assert abs(free.tokens - target) <= 500
        counts = [np.bincount(one.documents, minlength=30) for one in (free, capped)]
        assert (counts[0] - counts[1]).sum() == (free.tokens > target)
        assert (counts[0] >= counts[1]).all()
        nearest_is_above += free.tokens > target
    # Half of the time, the nearest count is above, unless the passes are whole.
    assert nearest_is_above > 15 or epochs == 1.0


def test_a_cap_just_above_the_next_document_lets_it_in() -> None:
    sizes = np.array([100] * 10)
    assert _first_of_two(sizes, 460, 500, 0).tokens == 500
    assert _first_of_two(sizes, 460, 499, 0).tokens == 400
    assert _first_of_two(sizes, 1460, 1500, 0).tokens == 1500
    assert _first_of_two(sizes, 1460, 1499, 0).tokens == 1400
