"""Rounds what a source gives to whole documents, and lets the whole come out to the token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from emma.base.errors import UserError

__all__ = ["Closing", "Pass", "Rounded", "Rounding", "Scan", "close", "round_source"]

Key = tuple[str, str]
Rounding = Literal["nearest", "balanced", "filled", "closing"]
"""How a source was rounded: to the document nearest to its target; to the other side of its target, because the roundings
of all sources together left too much; up to its cap, because no single source could make up what was missing; or to the
token, to make up the total."""


class Scan(Protocol):
    """Makes passes for targets and caps by source."""

    def __call__(
        self, targets: Mapping[Key, tuple[int, int]], *, everything: bool = False
    ) -> dict[Key, Pass]: ...


@dataclass(frozen=True)
class Pass:
    """The last, partial pass over a source of `held` tokens, after `whole` passes over all of it.

    Documents of at most `longest` tokens take part, in the order of their random numbers. `before` is the number of tokens
    of those that come before the first one listed; `numbers`, `sizes` (tokens) and `index` (in the catalogue) list the
    documents around the place where the target is reached, and at least one after it if there is any.
    """

    key: Key
    target: int
    cap: int
    held: int
    whole: int
    longest: int
    before: int
    numbers: np.ndarray
    sizes: np.ndarray
    index: np.ndarray

    @property
    def rest(self) -> int:
        """Target of this pass."""
        return self.target - self.whole * self.held

    def ends(self) -> np.ndarray:
        """Tokens up to and with each listed document."""
        return self.before + np.cumsum(self.sizes)

    def rounded(self, count: int, rounding: Rounding = "nearest") -> Rounded:
        """The documents before those listed, and the first `count` of these."""
        tokens = self.whole * self.held + self.before + int(self.sizes[:count].sum())
        # (If all listed are taken, none comes after them.)
        below = int(self.numbers[count]) if count < len(self.numbers) else 2**64 - 1
        return Rounded(tokens, self.whole, below, self.longest, rounding, count)


@dataclass(frozen=True)
class Rounded:
    """What a source gives: `tokens` in all; every document `whole` times, and those of at most `longest` tokens whose
    random number is below `below` once more. `count` is the number of them among those that the pass lists."""

    tokens: int
    whole: int
    below: int
    longest: int
    rounding: Rounding
    count: int


@dataclass(frozen=True)
class Closing:
    """The source that makes up the total, and its last document, of which only the first `tokens` are read."""

    key: Key
    document: int
    tokens: int


def round_source(part: Pass) -> Rounded:
    """Takes documents in order, as many as come nearest to the target without exceeding the cap."""
    count = int(np.searchsorted(part.ends(), part.rest, side="right"))
    below = part.rounded(count)
    if count == len(part.sizes):
        return below
    above = part.rounded(count + 1)
    return (
        above
        if above.tokens - part.target < part.target - below.tokens and above.tokens <= part.cap
        else below
    )


def _other_side(part: Pass, rounded: Rounded) -> Rounded | None:
    """The source one document above its target if it is below, one below if it is above; None if it is met exactly,
    or there is no such document, or the cap allows no more."""
    if rounded.tokens > part.target:
        return part.rounded(rounded.count - 1, "balanced")
    if rounded.tokens == part.target or rounded.count == len(part.sizes):
        return None
    above = part.rounded(rounded.count + 1, "balanced")
    return above if above.tokens <= part.cap else None


def close(
    passes: Mapping[Key, Pass],
    rounded: Mapping[Key, Rounded],
    longest: Mapping[Key, int],
    total: int,
    scan: Scan,
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
        scan: makes passes for other targets and caps, of documents of any length if asked for `everything`.

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
    wanted = {closing: (target, passes[closing].cap)}
    last, changed[closing] = _to_the_token(scan(wanted, everything=True)[closing])
    return last, changed


def _to_the_token(part: Pass) -> tuple[Closing, Rounded]:
    """All documents that end before the target, and the next one in part."""
    count = int(np.searchsorted(part.ends(), part.rest, side="left"))
    rounded = part.rounded(count, "closing")
    last = Closing(part.key, int(part.index[count]), part.target - rounded.tokens)
    return last, replace(rounded, tokens=part.target)
