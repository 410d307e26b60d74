"""Rounds what a source gives to whole documents, and lets the whole come out to the token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from emma.base.errors import UserError

__all__ = ["Closing", "Pass", "Rounded", "Rounding", "balance", "close", "round_source"]

Key = tuple[str, str]
Rounding = Literal["nearest", "balanced", "filled", "closing"]
"""How a source was rounded: to the document nearest to its target; to the other side of its target, because the roundings
of all sources together left too much; up to its cap, because no single source could make up what was missing; or to the
token, to make up the total."""


@dataclass(frozen=True)
class Pass:
    """The last, partial pass over a source of `held` tokens, after `whole` passes over all of it.

    Documents come in the order of their random numbers. `before` is the number of tokens of those that come before the
    first one listed; `numbers`, `sizes` (tokens) and `index` (in the catalogue) list the documents around the place
    where the target is reached, and at least `window` after it, as long as there are any.
    """

    key: Key
    target: int
    cap: int
    held: int
    whole: int
    before: int
    numbers: np.ndarray
    sizes: np.ndarray
    index: np.ndarray
    window: int

    @property
    def rest(self) -> int:
        """Target of this pass."""
        return self.target - self.whole * self.held

    def ends(self) -> np.ndarray:
        """Tokens up to and with each listed document."""
        return self.before + np.cumsum(self.sizes)

    def rounded(self, count: int, more: list[int], rounding: Rounding = "nearest") -> Rounded:
        """The first `count` of the listed documents, and those at the places `more`."""
        taken = self.before + int(self.sizes[:count].sum()) + int(self.sizes[more].sum())
        below = int(self.numbers[count]) if count < len(self.numbers) else int(self.numbers[-1]) + 1
        return Rounded(
            self.whole * self.held + taken,
            self.whole,
            min(below, 2**64 - 1),
            self.index[np.array(more, np.int64)],
            rounding,
            count,
            tuple(more),
        )


@dataclass(frozen=True)
class Rounded:
    """What a source gives: `tokens` in all; every document `whole` times, once more those whose random number is below
    `below` and those listed in `more`. `count` and `places` are the same in terms of the pass."""

    tokens: int
    whole: int
    below: int
    more: np.ndarray
    rounding: Rounding
    count: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Closing:
    """The source that makes up the total, and its last document, of which only the first `tokens` are read."""

    key: Key
    document: int
    tokens: int


def round_source(part: Pass) -> Rounded:
    """Takes documents in order, each if that brings the source nearer to its target and does not exceed its cap."""
    room = part.cap - part.target
    count = int(np.searchsorted(part.ends(), part.rest, side="right"))
    gap = part.rest - part.before - int(part.sizes[:count].sum())
    more: list[int] = []
    at, stop = count, min(count + part.window, len(part.sizes))
    while gap > 0:
        sizes = part.sizes[at:stop]
        nearer = np.flatnonzero((sizes < 2 * gap) & (sizes <= gap + room))
        if not len(nearer):
            break
        at += int(nearer[0])
        more.append(at)
        gap -= int(part.sizes[at])
        at += 1
    return part.rounded(count, more)


def _other_side(part: Pass, rounded: Rounded) -> Rounded | None:
    """The source one document above its target if it is below, one below if it is above; None if it is met exactly,
    or the cap allows no more."""
    gap = part.target - rounded.tokens
    if gap < 0:
        return part.rounded(rounded.count, list(rounded.places[:-1]), "balanced")
    if gap == 0:
        return None
    stop = min(rounded.count + part.window, len(part.sizes))
    places = np.setdiff1d(np.arange(rounded.count, stop), np.array(rounded.places, np.int64))
    places = places[part.sizes[places] <= gap + part.cap - part.target]
    if not len(places):
        return None
    shortest = int(places[np.argmin(part.sizes[places])])
    return part.rounded(rounded.count, [*rounded.places, shortest], "balanced")


def balance(
    passes: Mapping[Key, Pass], rounded: dict[Key, Rounded], longest: Mapping[Key, int], total: int
) -> None:
    """Puts sources on the other side of their targets, those first that come nearest there, until what the roundings
    leave of the total is at most half of the closing source's longest document."""
    order = _by_size(passes)
    closing = next(
        (key for key in order if passes[key].cap - passes[key].target >= longest[key] / 2), order[0]
    )
    limit = longest[closing] / 2
    missing = total - sum(each.tokens for each in rounded.values())
    others = {
        key: other
        for key in order
        if key != closing and (other := _other_side(passes[key], rounded[key])) is not None
    }
    for key in sorted(others, key=lambda key: (abs(others[key].tokens - passes[key].target), key)):
        if abs(missing) <= limit:
            return
        gained = others[key].tokens - rounded[key].tokens
        if abs(missing - gained) < abs(missing):
            rounded[key] = others[key]
            missing -= gained


def close(
    passes: Mapping[Key, Pass],
    rounded: Mapping[Key, Rounded],
    total: int,
    scan: Callable[[Mapping[Key, tuple[int, int]]], dict[Key, Pass]],
) -> tuple[Closing, dict[Key, Rounded]]:
    """Lets the largest source that can take what is missing of the total, to the token.

    Args:
        passes: by source.
        rounded: likewise.
        total: tokens of all sources together.
        scan: makes passes for other targets and caps.

    Returns:
        The closing source, and the sources that give something else than before: itself, and where no source can take
        all that is missing, those that are filled up to their caps.

    Raises:
        UserError: the caps keep the sources from reaching the total.
    """
    order = _by_size(passes)
    tokens = {key: each.tokens for key, each in rounded.items()}
    changed: dict[Key, Rounded] = {}
    for attempt in range(2):
        missing = total - sum(tokens.values())
        for key in order:
            target, cap = tokens[key] + missing, passes[key].cap
            if 0 < target <= cap:
                closing, changed[key] = _to_the_token(scan({key: (target, cap)})[key])
                return closing, changed
        if attempt or missing < 0:
            break
        fuller: dict[Key, tuple[int, int]] = {}
        for key in order:
            room = min(passes[key].cap - tokens[key], missing)
            if room > 0:
                fuller[key] = (tokens[key] + room, passes[key].cap)
                missing -= room
        filled = {key: round_source(each) for key, each in scan(fuller).items()}
        changed.update({key: replace(each, rounding="filled") for key, each in filled.items()})
        tokens.update({key: each.tokens for key, each in filled.items()})
    given = sum(tokens.values())
    raise UserError(
        f"the sources give {given:,} tokens in whole documents within their caps, but the mix needs {total:,}; raise "
        "max_epochs, or lower the budget (schedule.steps × batch.global × batch.sequence_length)"
    )


def _to_the_token(part: Pass) -> tuple[Closing, Rounded]:
    """All documents that end before the target, and the shortest of the next ones that is long enough for the rest."""
    count = int(np.searchsorted(part.ends(), part.rest, side="left"))
    gap = part.rest - part.before - int(part.sizes[:count].sum())
    sizes = part.sizes[count : count + part.window]
    enough = np.flatnonzero(sizes >= gap)
    last = count + int(enough[np.argmin(sizes[enough])])
    rounded = replace(part.rounded(count, [], "closing"), tokens=part.target)
    return Closing(part.key, int(part.index[last]), gap), rounded


def _by_size(passes: Mapping[Key, Pass]) -> list[Key]:
    """Sources, those with the largest targets first."""
    return sorted(passes, key=lambda key: (-passes[key].target, key))
