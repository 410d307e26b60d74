"""Caps bind in every step of rounding."""

from __future__ import annotations

import numpy as np
import pytest

from emma.tools.mix.rounding import Pass, _other_side, round_source


def part(target: int, cap: int) -> Pass:
    """Three documents of 10 tokens."""
    numbers = np.array([1, 2, 3], np.uint64)
    return Pass(("c", "l"), target, cap, 30, 0, 10, 0, numbers, np.full(3, 10), np.arange(3))


@pytest.mark.parametrize(("cap", "tokens"), [(19, 10), (20, 20), (30, 20)])
def test_the_nearer_document_is_taken_if_the_cap_allows_it(cap: int, tokens: int) -> None:
    assert round_source(part(18, cap)).tokens == tokens


@pytest.mark.parametrize(("cap", "tokens"), [(19, None), (20, 20)])
def test_the_other_side_is_taken_if_the_cap_allows_it(cap: int, tokens: int | None) -> None:
    found = _other_side(part(12, cap), round_source(part(12, cap)))
    assert (None if found is None else found.tokens) == tokens
