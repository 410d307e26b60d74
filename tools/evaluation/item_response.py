"""Item response over parallel items: how able a model is in each language, and how few of the items show it.

Benchmarks that ask the same items in every language (Belebele, XCOPA, MGSM; FLORES with a threshold) are a table of right
and wrong answers. An item's chance of a right answer in a language of ability θ is

    c + (1 − c) / (1 + exp(−a (θ − b)))

with the item's discrimination a and difficulty b, and the chance c of guessing (Birnbaum 1968). Abilities are N(0, 1) over
languages, which sets the scale; items are fitted by marginal likelihood with expectation-maximization (Bock and Aitkin
1981, Psychometrika 46). The prior of log a and b, N(0, 0.5²) and N(0, 2²), holds items that few languages tell apart.

A subset of the items is chosen for the information that it gives on the languages' abilities, most where they are. What
it says of the whole benchmark is a prediction: `check_subset` compares it with the full run, in languages that took part
neither in the fit nor in the choice, and widens the interval until it holds in 95 % of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emma.base.errors import UserError

__all__ = ["Ability", "ItemModel", "SubsetCheck", "abilities", "check_subset", "choose", "fit", "predict"]

LEAST_ROWS = 10
"""Fewest languages (of each model) with which items are fitted."""


def _prior(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """N(0, 1) on evenly spaced nodes."""
    weights = np.exp(-(nodes**2) / 2)
    return np.asarray(weights / weights.sum())


_NODES = np.linspace(-5, 5, 41)
"""Where abilities are integrated out in the fit."""
_FINE = np.linspace(-5, 5, 501)
"""Where they are estimated: thousands of items know an ability to a few hundredths."""
_PRIOR = _prior(_NODES)
_ROUNDS, _STEPS, _TOLERANCE = 60, 2, 1e-3
_FOLDS = 5


@dataclass(frozen=True)
class ItemModel:
    """Fitted items: discrimination and difficulty [items], and the chance of guessing."""

    discrimination: NDArray[np.float64]
    difficulty: NDArray[np.float64]
    guessing: float

    def right(self, ability: NDArray[np.float64]) -> NDArray[np.float64]:
        """Chance of a right answer [abilities, items]."""
        raised = self.discrimination * (ability[:, None] - self.difficulty)
        return self.guessing + (1 - self.guessing) * _logistic(raised)

    def information(self, ability: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fisher's information of each item on the ability [abilities, items] (Lord 1980, section 5.4)."""
        p = self.right(ability)
        known = (p - self.guessing) / (1 - self.guessing)
        return np.asarray(self.discrimination**2 * known**2 * (1 - p) / p)


@dataclass(frozen=True)
class Ability:
    """Ability in one language with its 95 % interval, and the share of right answers that it means over all items. The
    scale is that of the fitted languages; the interval is about a language's place on it."""

    value: float
    low: float
    high: float
    expected: float
    expected_low: float
    expected_high: float


@dataclass(frozen=True)
class SubsetCheck:
    """A subset against the full run, in languages left out of the fit and of the choice.

    Attributes:
        items, of: size of the subset, and of the whole.
        languages: rows that were predicted.
        error: root mean square of (predicted − full score).
        random_error: the same by the plain score on random subsets of this size.
        coverage: share of the model's own 95 % intervals that hold the full score.
        widen: factor on the intervals with which 95 % do; at least 1.
        half_width: mean half width of the widened intervals.
    """

    items: int
    of: int
    languages: int
    error: float
    random_error: float
    coverage: float
    widen: float
    half_width: float


def _logistic(value: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(value))


def fit(answers: NDArray[np.float64], guessing: float = 0.0) -> ItemModel:
    """Fits the items.

    Args:
        answers: [languages, items], 1 for right, 0 for wrong, NaN where an item was not asked.
        guessing: chance of a right answer by guessing, 0 to 1.

    Raises:
        UserError: too few languages, or an answer is neither right nor wrong.
    """
    table = np.asarray(answers, np.float64)
    asked = ~np.isnan(table)
    if not np.isin(table[asked], (0.0, 1.0)).all():
        raise UserError("items must be right (1) or wrong (0); give a threshold for other scores")
    if len(table) < LEAST_ROWS:
        raise UserError(
            f"{len(table)} rows of answers cannot tell items apart; evaluate {LEAST_ROWS} languages or more"
        )
    if not 0 <= guessing < 1:
        raise UserError(f"the chance of guessing is {guessing}; it must be at least 0 and below 1")
    right = np.where(asked, table, 0.0)
    seen = asked.astype(np.float64)
    share = (right.sum(axis=0) + 0.5) / (seen.sum(axis=0) + 1)
    start = np.clip((share - guessing) / (1 - guessing), 0.02, 0.98)
    model = ItemModel(np.ones(table.shape[1]), -np.log(start / (1 - start)), guessing)
    for _ in range(_ROUNDS):
        posterior = _posterior(model, right, seen, _NODES)
        refined = _refine(model, posterior.T @ right, posterior.T @ seen)
        change = float(np.abs(refined.difficulty - model.difficulty).max())
        model = refined
        if change < _TOLERANCE:
            break
    return model


def _posterior(
    model: ItemModel, right: NDArray[np.float64], seen: NDArray[np.float64], nodes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Posterior of each row's ability [rows, nodes]."""
    p = np.clip(model.right(nodes), 1e-9, 1 - 1e-9)
    logs = right @ np.log(p).T + (seen - right) @ np.log1p(-p).T + np.log(_prior(nodes))
    chance = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(chance / chance.sum(axis=1, keepdims=True))


def _refine(model: ItemModel, right: NDArray[np.float64], seen: NDArray[np.float64]) -> ItemModel:
    """Scoring steps of every item's log discrimination and difficulty.

    Args:
        model: where to start.
        right, seen: expected counts of right answers and of answers [nodes, items].
    """
    slope, place, c = np.log(model.discrimination), model.difficulty.copy(), model.guessing
    for _ in range(_STEPS):
        a = np.exp(slope)
        far = _NODES[:, None] - place
        s = _logistic(a * far)
        p = np.clip(c + (1 - c) * s, 1e-9, 1 - 1e-9)
        turn = (1 - c) * s * (1 - s)
        by_slope, by_place = turn * a * far, -turn * a
        residual = (right - seen * p) / (p * (1 - p))
        weight = seen / (p * (1 - p))
        g = [(residual * by_slope).sum(0) - slope / 0.25, (residual * by_place).sum(0) - place / 4]
        h11 = (weight * by_slope**2).sum(0) + 4
        h22 = (weight * by_place**2).sum(0) + 0.25
        h12 = (weight * by_slope * by_place).sum(0)
        fixed = h11 * h22 - h12**2
        slope = np.clip(slope + np.clip((h22 * g[0] - h12 * g[1]) / fixed, -0.5, 0.5), -3, 2)
        place = np.clip(place + np.clip((h11 * g[1] - h12 * g[0]) / fixed, -1, 1), -8, 8)
    return ItemModel(np.exp(slope), place, c)


def abilities(model: ItemModel, answers: NDArray[np.float64]) -> list[Ability]:
    """Ability of each row of answers [rows, items], with equal-tailed 95 % intervals of its posterior."""
    asked = ~np.isnan(answers)
    posterior = _posterior(model, np.where(asked, answers, 0.0), asked.astype(np.float64), _FINE)
    expected = model.right(_FINE).mean(axis=1)
    rows = []
    for chance in posterior:
        # Half of a node's share lies below it.
        below = np.cumsum(chance) - chance / 2
        low, high = np.interp([0.025, 0.975], below, _FINE)
        bounds = np.interp([low, high], _FINE, expected)
        rows.append(
            Ability(
                float(chance @ _FINE),
                float(low),
                float(high),
                float(chance @ expected),
                float(bounds[0]),
                float(bounds[1]),
            )
        )
    return rows


def choose(model: ItemModel, count: int, rows: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Items that together tell most about languages' abilities: each next one adds most to the mean log information.

    Args:
        model: fitted items.
        count: how many.
        rows: abilities to tell apart; None: those of the population, N(0, 1).

    Returns:
        Indices of items, the most telling first.
    """
    places = _NODES if rows is None else np.asarray(rows, np.float64)
    weights = _PRIOR if rows is None else np.full(len(places), 1 / len(places))
    gain = model.information(places)
    known = np.ones(len(places))  # the prior's information
    left = np.ones(gain.shape[1], bool)
    chosen = []
    for _ in range(min(count, gain.shape[1])):
        value = np.where(left, weights @ np.log(known[:, None] + gain), -np.inf)
        best = int(value.argmax())
        chosen.append(best)
        left[best] = False
        known += gain[:, best]
    return np.array(chosen, np.int64)


def predict(
    model: ItemModel, answers: NDArray[np.float64], asked: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The score over all items from answers on some of them.

    Args:
        model: fitted items.
        answers: [rows, items]; only the columns `asked` are looked at.
        asked: indices of the items that were asked.

    Returns:
        Predicted score and its standard error [rows], which counts what the other items' answers leave open.
    """
    part = ItemModel(model.discrimination[asked], model.difficulty[asked], model.guessing)
    given = answers[:, asked]
    there = ~np.isnan(given)
    posterior = _posterior(part, np.where(there, given, 0.0), there.astype(np.float64), _FINE)
    open_ = np.ones(answers.shape[1], bool)
    open_[asked] = False
    p = model.right(_FINE)[:, open_]
    total, scatter = p.sum(axis=1), (p * (1 - p)).sum(axis=1)
    mean = posterior @ total
    variance = posterior @ (scatter + total**2) - mean**2
    return (np.nansum(given, axis=1) + mean) / answers.shape[1], np.sqrt(variance) / answers.shape[1]


def check_subset(
    answers: NDArray[np.float64], groups: Sequence[str], share: float = 0.1, guessing: float = 0.0
) -> SubsetCheck:
    """How well a chosen subset gives the full run's scores, by cross-validation over languages.

    Args:
        answers: [rows, items] without gaps.
        groups: language of each row; all rows of one are left out together.
        share: of the items.
        guessing: see `fit`.

    Raises:
        UserError: an item was not asked in some language, or the languages are too few.
    """
    if np.isnan(answers).any():
        raise UserError(
            "some items were not asked in every language; evaluate all languages with one --limit"
        )
    count = max(1, round(share * answers.shape[1]))
    names = list(dict.fromkeys(groups))
    order: Mapping[str, int] = dict(
        zip(np.random.default_rng(0).permutation(names), range(len(names)), strict=True)
    )
    fold = np.array([order[name] % _FOLDS for name in groups])
    predicted, errors = np.zeros(len(answers)), np.ones(len(answers))
    for number in range(_FOLDS):
        out = fold == number
        if out.any():
            model = fit(answers[~out], guessing)
            predicted[out], errors[out] = predict(model, answers[out], choose(model, count))
    full = answers.mean(axis=1)
    away = np.abs(predicted - full)
    z = np.sort(away / errors)
    # The least factor that holds 95 % of the rows, with one more counted as missed (split conformal prediction).
    last = min(len(z) - 1, int(np.ceil(0.95 * (len(z) + 1))) - 1)
    widen = max(1.0, float(z[last]) / 1.96)
    draw = np.random.default_rng(1)
    plain = [
        answers[:, draw.choice(answers.shape[1], count, replace=False)].mean(axis=1) - full for _ in range(20)
    ]
    return SubsetCheck(
        count,
        answers.shape[1],
        len(answers),
        float(np.sqrt(np.mean(away**2))),
        float(np.sqrt(np.mean(np.square(plain)))),
        float(np.mean(z <= 1.96)),
        widen,
        float(np.mean(1.96 * widen * errors)),
    )
