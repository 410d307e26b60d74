"""Rounds what a source gives to whole documents, and lets the whole come out to the token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from emma.base.errors import UserError

__all__ = ["Closing", "Pass", "Rounded", "Rounding", "close", "round_source"]

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
    """Takes documents in order as long as they fit below the target, passing over those that don't (after the first that
    doesn't, within the window); then the shortest of those passed over, if that comes nearer and the cap allows it.

    (To stop at the first that does not fit would be off by half a document of the longest kind, as long documents are
    the ones that mostly lie across the target.)
    """
    count = int(np.searchsorted(part.ends(), part.rest, side="right"))
    gap = part.rest - part.before - int(part.sizes[:count].sum())
    more: list[int] = []
    shortest: int | None = None
    for place, size in enumerate(part.sizes[count : count + part.window].tolist(), count):
        if size <= gap:
            more.append(place)
            gap -= size
        elif shortest is None or size < part.sizes[shortest]:
            shortest = place
    if (
        shortest is not None
        and part.sizes[shortest] < 2 * gap
        and part.sizes[shortest] <= gap + part.cap - part.target
    ):
        more.append(shortest)
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


def close(
    passes: Mapping[Key, Pass],
    rounded: Mapping[Key, Rounded],
    longest: Mapping[Key, int],
    total: int,
    scan: Callable[[Mapping[Key, tuple[int, int]]], dict[Key, Pass]],
) -> tuple[Closing, dict[Key, Rounded]]:
    """Lets one source take what the roundings leave of the total, to the token: the largest one that then is at most half
    of its longest document off its target.

    If there is none, sources are put on the other side of their targets, those first that were nearly half a document off, until
    there is one or none is left to be put; then the largest one takes it that its cap allows.

    Args:
        passes: by source.
        rounded: likewise.
        longest: tokens of each source's longest document.
        total: tokens of all sources together.
        scan: makes passes for other targets and caps.

    Returns:
        The closing source, and the sources that give something else than before: itself, those put on the other side, and
        where no source's cap allows all that is missing, those that are filled up to their caps.

    Raises:
        UserError: the caps keep the sources from reaching the total.
    """
    order = sorted(passes, key=lambda key: (-passes[key].target, key))
    changed: dict[Key, Rounded] = {}
    tokens = {key: each.tokens for key, each in rounded.items()}
    missing = total - sum(tokens.values())

    def closer(*, near: bool) -> Key | None:
        for key in order:
            target = tokens[key] + missing
            off = abs(target - passes[key].target)
            if 0 < target <= passes[key].cap and (not near or off <= longest[key] / 2):
                return key
        return None

    closing = closer(near=True)
    if closing is None:
        others = {
            key: each for key in order[1:] if (each := _other_side(passes[key], rounded[key])) is not None
        }
        gains = {key: each.tokens - tokens[key] for key, each in others.items()}
        for key in sorted(
            others, key=lambda key: (abs((others[key].tokens - passes[key].target) / gains[key]), key)
        ):
            gained = gains[key]
            if abs(missing - gained) < abs(missing):
                changed[key], tokens[key] = others[key], others[key].tokens
                missing -= gained
                if (closing := closer(near=True)) is not None:
                    break
        closing = closing or closer(near=False)
    if closing is None and missing > 0:
        fuller: dict[Key, tuple[int, int]] = {}
        left = missing
        for key in order:
            room = min(passes[key].cap - tokens[key], left)
            if room > 0:
                fuller[key] = (tokens[key] + room, passes[key].cap)
                left -= room
        for key, part in scan(fuller).items():
            changed[key] = replace(round_source(part), rounding="filled")
            tokens[key] = changed[key].tokens
        missing = total - sum(tokens.values())
        closing = closer(near=False)
    if closing is None:
        raise UserError(
            f"the sources give {sum(tokens.values()):,} tokens in whole documents within their caps, but the mix needs "
            f"{total:,}; raise max_epochs, or lower the budget (schedule.steps × batch.global × batch.sequence_length)"
        )
    target = tokens[closing] + missing
    last, changed[closing] = _to_the_token(scan({closing: (target, passes[closing].cap)})[closing])
    return last, changed


def _to_the_token(part: Pass) -> tuple[Closing, Rounded]:
    """All documents that end before the target, and the shortest of the next ones that is long enough for the rest."""
    count = int(np.searchsorted(part.ends(), part.rest, side="left"))
    gap = part.rest - part.before - int(part.sizes[:count].sum())
    sizes = part.sizes[count : count + part.window]
    enough = np.flatnonzero(sizes >= gap)
    last = count + int(enough[np.argmin(sizes[enough])])
    rounded = replace(part.rounded(count, [], "closing"), tokens=part.target)
    return Closing(part.key, int(part.index[last]), gap), rounded
