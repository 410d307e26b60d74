"""Counts in how many languages each model of a field wins, by group of languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emma.tools.evaluation.averages import category_of, groups_of

__all__ = ["field_wins"]


def field_wins(
    values: Mapping[str, Mapping[str, float]],
    *,
    better: str,
    category: Callable[[str], str | None] = category_of,
) -> dict[str, dict[str, int]]:
    """Number of languages that each model of a field wins, by group, as in the papers' first figure.

    Models that tie for the best value all win, so the counts of a group may exceed its number of languages.

    Args:
        values: model → language → value. Only languages in which every model has a value count.
        better: `higher` or `lower`.
        category: resource category of a code.

    Returns:
        Model → group (`all`, `all but English`, `English`, resource categories) → number of languages won.
    """
    if not values:
        return {}
    common = [
        name for name in next(iter(values.values())) if all(name in scores for scores in values.values())
    ]
    choose = max if better == "higher" else min
    best = {name: choose(scores[name] for scores in values.values()) for name in common}
    groups = {
        group: members
        for (dimension, group), members in groups_of(common, category=category).items()
        if dimension in ("overall", "category")
    }
    return {
        model: {
            group: sum(scores[name] == best[name] for name in members) for group, members in groups.items()
        }
        for model, scores in values.items()
    }
