"""Forgetting, measured and tested: how far a validation group's loss has risen above the base's, and whether that is
more than chance. Needs no torch.

The same documents are scored at step 0 and at each validation. With ℓ₀ and ℓ the sums of a document's losses then and
now, the rise of a group is r = Σℓ / Σℓ₀ − 1: the relative rise of its bits per byte (the bytes cancel). What was drawn
at random are documents, not tokens, and tokens of one document rise together; so documents are what is counted.

*One look.* That a group has risen by more than its bound b is tested by the mean of d = ℓ − (1 + b) ℓ₀ over documents,
with Student's statistic T = √n mean(d) / s(d). Two corrections keep it from alarming too often: the degrees of freedom
are those of the effective number of documents (Σℓ₀)² / Σℓ₀² (Kish 1965), since a few long ones may outweigh all others;
and where d is skewed to the left the critical value q grows by −g (2q² + 1) / (6√n), g the skewness, the first-order
term of the distribution of a studentised mean (Hall 1992, "The Bootstrap and Edgeworth Expansion", section 2.6). The
limit `at_least` is the rise that the same test would just not reject (Fieller's).

*All looks.* Looking often must not raise false alarms. All looks are at the same documents and their dependence is not
known, so what is spent is bounded by a union: a look at step s, with the one before at step p, tests each of G groups
at level α (s − p) / (T G), with T the run's steps (linear spending, Lan and DeMets 1983, without use of the
dependence). The levels of a whole run add up to α, however often and irregularly it looks.

How often it alarms in vain is simulated in `tests/tools/runs/test_forgetting.py`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["FEWEST_DOCUMENTS", "Look", "excess", "level_of", "look_at"]

FEWEST_DOCUMENTS = 20
"""With fewer documents than this, nothing could be told from chance at the levels of a run with many validations."""

_BISECTIONS = 50


@dataclass(frozen=True)
class Look:
    """What one validation says about one group; an entry of `guard` in a validation's line of `metrics.jsonl`.

    Attributes:
        step: of the validation.
        group: name.
        bound: largest relative rise that the recipe allows.
        rise: relative rise of bits per byte against the base; None if a loss is not finite.
        error: its standard error.
        at_least: lower confidence limit of the rise, at `level`; −1 where the documents allow none, None at level 0.
        level: largest probability that this look finds a group above its bound though it is not.
        documents: documents that were scored.
        forgotten: whether the group is above its bound beyond chance, or its loss is not finite.
    """

    step: int
    group: str
    bound: float
    rise: float | None
    error: float | None
    at_least: float | None
    level: float
    documents: int
    forgotten: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.rise is None or self.error is None:
            return f"{self.group}: the loss is not finite"
        beyond = f"{100 * self.at_least:+.2f} % beyond chance, " if self.at_least is not None else ""
        return (
            f"{self.group}: bits per byte {100 * self.rise:+.2f} % ± {100 * self.error:.2f} % against the base, {beyond}"
            f"{100 * self.bound:+.2f} % allowed"
        )


def level_of(step: int, before: int, steps: int, groups: int, false_alarms: float) -> float:
    """Level of a look at one group.

    Args:
        step: of the look.
        before: step of the look before it; 0 for the first.
        steps: of the run.
        groups: how many are guarded.
        false_alarms: probability of any false alarm in the whole run.
    """
    return false_alarms * (step - before) / (steps * groups)


def excess(base: np.ndarray, now: np.ndarray, bound: float, level: float) -> np.ndarray:
    """By how much the test's statistic is above its critical value; above 0, the rise exceeds the bound beyond chance.

    Args:
        base: sum of the losses of each document at step 0, in nats; [..., documents].
        now: the same of the look.
        bound: relative rise that is allowed.
        level: of the test, from 0 (never above) to 0.5.

    Returns:
        [...]; infinite where all documents are above, or all below, by the same amount.
    """
    from scipy.stats import t as student

    n = base.shape[-1]
    d = now - (1 + bound) * base
    mean, deviation = d.mean(-1), d.std(-1, ddof=1)
    effective = base.sum(-1) ** 2 / (base**2).sum(-1)
    critical = student.isf(level, np.maximum(effective - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = ((d - mean[..., None]) ** 3).mean(-1) / deviation**3
        statistic = math.sqrt(n) * mean / deviation
        critical = critical + np.maximum(0, -skewness) * (2 * critical**2 + 1) / (6 * math.sqrt(n))
        # Without any spread the sign decides.
        certain = np.where((mean > 0) & (level > 0), np.inf, -np.inf)
        return np.where(deviation > 0, statistic - critical, certain)


def look_at(step: int, group: str, bound: float, base: np.ndarray, now: np.ndarray, level: float) -> Look:
    """Looks at one group.

    Args:
        step: of the validation.
        group: its name.
        bound: largest relative rise that is allowed.
        base: sum of the losses of each document at step 0, in nats; float64 [documents].
        now: the same of this validation.
        level: of the test (`level_of`).
    """
    n = len(base)
    if not np.isfinite(now).all():
        return Look(step, group, bound, None, None, None, level, n, True)
    total = float(base.sum())
    rise = float(now.sum()) / total - 1
    error = float((now - (1 + rise) * base).std(ddof=1)) * math.sqrt(n) / total
    forgotten = bool(excess(base, now, bound, level) > 0)
    # The limit lies between a rise that is excluded and one that is not.
    low, high = (bound, rise) if forgotten else (-1.0, min(bound, rise))
    if not excess(base, now, low, level) > 0:
        return Look(step, group, bound, rise, error, None if level == 0 else -1.0, level, n, forgotten)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(base, now, middle, level) > 0 else (low, middle)
    return Look(step, group, bound, rise, error, low, level, n, forgotten)
