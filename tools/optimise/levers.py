"""The shares of a mix that may move, and the keys of a recipe that say them exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from emma.base.errors import UserError
from emma.recipes.schema.data import Mix
from emma.tools.mix.plan import MixPlan, water_fill

__all__ = ["Lever", "free_levers", "keys_of", "levers_of", "proportional", "shares_of"]


@dataclass(frozen=True)
class Lever:
    """One share: that of a component's resource category, or of a whole component where no key weights its parts.

    Attributes:
        component, category: what it is; `category` is None for a whole component.
        tokens: what its sources hold [sources].
        caps: the most that each may give [sources].
        planned: tokens of the recipe's own mix.
        factored: whether the component's categories have factors.
    """

    component: str
    category: str | None
    tokens: np.ndarray
    caps: np.ndarray
    planned: int
    factored: bool

    @property
    def name(self) -> str:
        """`component/category` or `component`."""
        return self.component if self.category is None else f"{self.component}/{self.category}"

    @property
    def held(self) -> int:
        """Tokens of all its sources."""
        return int(self.tokens.sum())

    @property
    def cap(self) -> int:
        """The most that all its sources may give together."""
        return int(self.caps.sum())

    @property
    def capped(self) -> bool:
        """Whether the recipe's own mix takes all that its caps allow, within a thousandth."""
        return self.planned >= 0.999 * self.cap

    def level(self, tokens: float) -> float:
        """Tokens per token held at which its sources, none above its cap, give so many together."""
        ratios = self.caps / self.tokens
        order = np.argsort(ratios)
        held, caps = self.tokens[order].astype(float), self.caps[order].astype(float)
        # Sources reach their caps in the order of their ratios.
        levels = (tokens - np.concatenate([[0.0], np.cumsum(caps)[:-1]])) / np.cumsum(held[::-1])[::-1]
        fits = levels <= ratios[order] * (1 + 1e-12)
        return float(levels[int(np.argmax(fits))]) if fits.any() else float(ratios.max())


def levers_of(mix: Mix, plan: MixPlan) -> list[Lever]:
    """Levers of a planned mix, in its order; sources that hold nothing are no part of any."""
    rows: dict[tuple[str, str | None], list[tuple[int, int, int]]] = {}
    for row in plan.sources:
        component = mix.components[row.source.component]
        category = row.source.category if component.temperature is None else None
        if row.source.tokens:
            members = rows.setdefault((row.source.component, category), [])
            members.append((row.source.tokens, row.cap_tokens, row.target_tokens))
    levers = []
    for (name, category), members in rows.items():
        tokens, caps, planned = (np.array(each, np.int64) for each in zip(*members, strict=True))
        if planned.sum() == 0:
            raise UserError(
                f"{name}/{category}: the run's own mix takes nothing of it, so no share can be measured around it. "
                "Fix: raise its factor, or leave it out (exclude, at_least)"
            )
        levers.append(Lever(name, category, tokens, caps, int(planned.sum()), category is not None))
    if dotted := [lever.name for lever in levers if "." in lever.name]:
        raise UserError(
            f"{dotted[0]}: a name with a '.' cannot be a key of a sweep. Fix: rename it without dots"
        )
    return levers


def shares_of(levers: Sequence[Lever]) -> np.ndarray:
    """Shares of the planned mix [levers], which sum to 1."""
    planned = np.array([lever.planned for lever in levers], float)
    return np.asarray(planned / planned.sum())


def free_levers(levers: Sequence[Lever], fixed: Sequence[str]) -> np.ndarray:
    """Which levers may move [levers].

    Raises:
        UserError: a pattern fits none, or fewer than two are left.
    """
    held = np.zeros(len(levers), bool)
    for pattern in fixed:
        fits = np.array(
            [fnmatchcase(lever.name, pattern) or fnmatchcase(lever.component, pattern) for lever in levers]
        )
        if not fits.any():
            known = ", ".join(lever.name for lever in levers)
            raise UserError(f"fixed: {pattern!r} is none of {known}. Fix: correct the name")
        held |= fits
    if (~held).sum() < 2:
        raise UserError("fixed: fewer than two shares are left to move. Fix: fix fewer")
    return ~held


def proportional(levers: Sequence[Lever], budget: int) -> np.ndarray:
    """Shares by what the levers hold, none above its cap [levers]."""
    parts = water_fill(budget, [lever.held for lever in levers], [lever.cap for lever in levers])
    return np.asarray(parts / parts.sum())


def keys_of(levers: Sequence[Lever], shares: np.ndarray, budget: int) -> dict[str, float]:
    """Keys of `data.mix.components` that give these shares of a budget [levers]: each component's share in percent, and the
    factors of its categories, the smallest of which is 1."""
    keys: dict[str, float] = {}
    components: dict[str, list[tuple[Lever, float]]] = {}
    for lever, share in zip(levers, shares.tolist(), strict=True):
        components.setdefault(lever.component, []).append((lever, share))
    for name, members in components.items():
        keys[f"{name}.share"] = 100 * sum(share for _, share in members)
        levels = {
            str(lever.category): lever.level(share * budget) for lever, share in members if lever.factored
        }
        for category, level in levels.items():
            keys[f"{name}.categories.{category}.factor"] = level / min(levels.values())
    return keys
