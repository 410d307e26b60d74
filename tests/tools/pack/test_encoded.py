"""Documents with their boundaries: what an engine gives is taken only if it is exactly that."""

from __future__ import annotations

import numpy as np
import pytest

from emma.tools.pack.encoded import Bounded, IdSet

BEGIN, END, OTHER = 1, 2, 9
LIMIT = 20


def found(ids: list[int], documents: int, begin: int | None = None) -> Bounded | None:
    """Control tokens are 1, 2 and 9; 3 to 8 lie between them."""
    bounds = IdSet(np.array([BEGIN, END, OTHER]), LIMIT)
    return Bounded.found(np.array(ids, np.uint32), documents, bounds, begin, END)


def lists(bounded: Bounded) -> list[list[int]]:
    some = bounded.some(np.arange(len(bounded.ends)))
    return [some.ids[a:b].tolist() for a, b in zip(some.offsets[:-1], some.offsets[1:], strict=True)]


def test_documents_are_found_between_their_ends() -> None:
    bounded = found([5, 6, END, END, 3, 8, 7, END], 3)
    assert bounded is not None
    assert lists(bounded) == [[5, 6], [], [3, 8, 7]]
    assert bounded.lengths.tolist() == [2, 0, 3]
    assert lists(found([], 0)) == []  # type: ignore[arg-type]
    opened = found([BEGIN, 5, END, BEGIN, END, BEGIN, 4, 4, END], 3, BEGIN)
    assert opened is not None
    assert lists(opened) == [[5], [], [4, 4]]
    assert opened.starts.tolist() == [1, 4, 6]


@pytest.mark.parametrize(
    ("ids", "documents", "begin"),
    [
        ([5, END, 6, END], 1, None),  # a text became an end
        ([5, END, 6], 2, None),
        ([5, END, 6], 1, None),  # ids after the last document
        ([5, OTHER, 6, END], 2, None),  # a text became another control token
        ([5, OTHER, END], 1, None),
        ([5, LIMIT, END], 1, None),  # no such token
        ([5, END, LIMIT + 5, END], 2, None),
        ([5, END], 1, BEGIN),
        ([5, BEGIN, END], 1, BEGIN),  # ids before the first begin
        ([BEGIN, 5, END, 5, BEGIN, 6, END], 2, BEGIN),  # and between documents
        ([BEGIN, BEGIN, END, END], 2, BEGIN),
        ([BEGIN, 5, BEGIN, END, 6, END], 2, BEGIN),
        ([END, 5, BEGIN], 1, BEGIN),
        ([], 1, None),
    ],
)
def test_anything_else_is_not_taken(ids: list[int], documents: int, begin: int | None) -> None:
    assert found(ids, documents, begin) is None


@pytest.mark.parametrize("begin", [None, BEGIN])
def test_boundaries_are_put_around_parts_of_ids(begin: int | None) -> None:
    ids = np.arange(3, 9, dtype=np.uint32)
    whole = Bounded.of(ids, np.array([0, 2, 2]), np.array([2, 0, 4]), begin, END)
    assert lists(whole) == [[3, 4], [], [5, 6, 7, 8]]
    part = Bounded.of(ids, np.array([1, 4]), np.array([1, 2]), begin, END)
    assert lists(part) == [[4], [7, 8]]
    again = found(part.ids.tolist(), 2, begin)
    assert again is not None
    assert again.ends.tolist() == part.ends.tolist()
    assert len(Bounded.of(ids, np.zeros(0, int), np.zeros(0, int), begin, END).ids) == 0


def test_a_set_of_ids_finds_its_members_only() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        members = np.unique(generator.integers(0, 5000, generator.integers(1, 40)))
        members = members - members[0] if generator.random() < 0.5 else members
        ids = generator.integers(0, 5000, generator.integers(0, 3000)).astype(np.uint32)
        assert np.array_equal(IdSet(members, 5000).places(ids), np.flatnonzero(np.isin(ids, members)))
