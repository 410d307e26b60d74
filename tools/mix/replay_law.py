"""What a fitted law (`emma mix optimise`) asks a phase to replay, in place of fixed parts.

A law says what the shares p of a whole run make of a group's loss L_g. The run has measured a rise r_g of it where b_g is
allowed, with the shares p⁰. Its phase, the part ρ of the budget that is left, has shares p' (`replay_shares`), so that the
whole run will have had p = (1 − ρ) p⁰ + ρ p'. Each forgotten group gets the least part f_g of the phase for which

    L_g(p) / L_g(p⁰) ≤ (1 + b_g) / (1 + r_g).

That the phase's text comes last, and counts for more than its share, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.recipes.schema.guard import Replay
from emma.tools.laws.stored import StoredLaw, read_law
from emma.tools.mix.replay import parts_of, replay_shares, row_key

__all__ = ["Asked", "parts_by_rule"]

_ROUNDS, _HALVINGS = 100, 40


@dataclass(frozen=True)
class Asked:
    """The part of a phase that each forgotten group gets beyond its share, the rule in words, and the law's file if one was
    used."""

    parts: dict[str, float]
    rule: str
    law: Path | None = None


def parts_by_rule(
    rises: Mapping[str, tuple[float | None, float]],
    replay: Replay,
    rows: Sequence[dict[str, Any]],
    left: float,
    laws: Sequence[Path],
) -> Asked:
    """The parts by the law, where there is one for these groups and shares; else the fixed ones (`parts_of`).

    Args:
        rises: relative rise (None: not finite) and bound, by group.
        replay: the recipe's `guard.replay`, whose `law` is used whatever `laws` are.
        rows: of the run's `plan.parquet`.
        left: part of the run's budget that is left to the phase.
        laws: `fit.json` of each optimisation of the run.

    Raises:
        UserError: the law that the recipe names is none.
    """
    named = None if replay.law is None else Path(replay.law)
    files = list(laws) if named is None else [named]
    if not files:
        return Asked(parts_of(rises, replay), "fixed parts: the run has no fitted law")
    if len(files) > 1:
        listed = ", ".join(map(str, files))
        return Asked(
            parts_of(rises, replay),
            f"fixed parts: the run has several laws, and replay.law names none ({listed})",
        )
    file = files[0]
    try:
        stored = read_law(file)
    except UserError as error:
        if named is not None:
            raise
        return Asked(parts_of(rises, replay), f"fixed parts: {error}")
    if (why := _unfit(stored, rises, rows)) is not None:
        return Asked(parts_of(rises, replay), f"fixed parts: the law of {file} {why}")
    wanted = {name: (1 + bound) / (1 + float(rise or 0.0)) for name, (rise, bound) in rises.items()}
    parts, met = _least(_ratios(stored, rows, left, list(rises)), wanted, replay.most)
    said = "the least parts with which it predicts the bounds to be kept"
    if not met:
        said = f"which finds no parts up to replay.most ({replay.most:g}) that keep the bounds, so that much"
    return Asked(parts, f"the law {stored.law.model} of {file}: {said}", file)


def _unfit(
    stored: StoredLaw, rises: Mapping[str, tuple[float | None, float]], rows: Sequence[dict[str, Any]]
) -> str | None:
    """Why a law cannot be asked; None if it can."""
    if absent := [name for name in rises if name not in stored.groups]:
        return f"does not speak of {', '.join(absent)}"
    if endless := [name for name, (rise, _) in rises.items() if rise is None]:
        return f"says nothing of a loss that is not finite ({', '.join(endless)})"
    known = set(stored.levers)
    found = {_lever(row, known) for row in rows if row["tokens"]}
    if found != known:
        return "is of other shares than the run's mix has"
    return None


def _lever(row: Mapping[str, Any], known: set[str]) -> str:
    """Name of a source's share in a law."""
    parted = f"{row['component']}/{row['category']}"
    return parted if parted in known else str(row["component"])


def _ratios(
    stored: StoredLaw, rows: Sequence[dict[str, Any]], left: float, groups: Sequence[str]
) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """L_g(p) / L_g(p⁰) of each group, as a function of the parts."""
    known = set(stored.levers)
    places = [
        list(stored.levers).index(name) for name in (_lever(row, known) for row in rows if row["tokens"])
    ]
    keys = [row_key(row) for row in rows if row["tokens"]]
    columns = [list(stored.groups).index(name) for name in groups]

    def shares(of: Mapping[tuple[str, str], float]) -> np.ndarray:
        return np.bincount(places, [of[key] for key in keys], len(stored.levers))

    def ratios(parts: Mapping[str, float]) -> dict[str, float]:
        before, after = (shares(each) for each in replay_shares(list(rows), parts))
        whole = (1 - left) * before + left * after
        then, now = stored.law.predict(np.stack([before, whole]))[:, columns]
        return dict(zip(groups, (now / then).tolist(), strict=True))

    return ratios


def _least(
    ratios: Callable[[Mapping[str, float]], dict[str, float]], wanted: Mapping[str, float], most: float
) -> tuple[dict[str, float], bool]:
    """The least parts with which every ratio is as wanted, together at most `most`, and whether they are: what one group
    gets, the others lose, so each is found anew until none grows."""
    parts = dict.fromkeys(wanted, 0.0)
    for _ in range(_ROUNDS):
        before = dict(parts)
        for name in wanted:
            low, high = parts[name], most
            if ratios(parts)[name] <= wanted[name]:
                continue
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                if ratios(parts | {name: middle})[name] <= wanted[name]:
                    high = middle
                else:
                    low = middle
            parts[name] = high
        total = sum(parts.values())
        if total >= most * (1 - 1e-9):
            return {name: part * most / total for name, part in parts.items()}, False
        if parts == before:
            return parts, True
    return parts, False
