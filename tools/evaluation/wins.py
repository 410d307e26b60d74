"""Who is best where: wins across a field of models, by group of languages."""

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
    """Languages that each model of a field wins, by group: the count behind the papers' first figure.

    Models that share the best value all win, so the counts of a group may exceed its languages.

    Args:
        values: model → language → value. A language counts where every model has a value.
        better: `higher` or `lower`.
        category: resource category of a code.

    Returns:
        Model → group (`all`, `all but English`, `English`, resource categories) → languages won.
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
