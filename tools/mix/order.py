"""Is every part of a run like the whole? Tests of a mix's order against a uniform one, with a stated error rate.

What is in order is the units: a mix's documents (one stream) or its samples (best fit). In a uniform order, each order of
the units is equally likely. For every quantity (a component's share, the length of pieces, ...) two kinds of tests hold
whatever the lengths and however few the units, so no distribution is assumed:

- **Trend.** Unit i is paired with unit N-1-i. In a uniform order each pair is as likely the other way round, so
  the covariance with the place, sum of w_j (x_later - x_earlier) with w_j the distance to the middle, is a sum of
  terms with random signs: by Hoeffding's inequality (1963, theorem 2), it exceeds z times the square root of the sum of
  its terms' squares, on either side, with a probability of at most 2 exp(-z²/2).
- **Parts.** The mean over one of a hundred (or ten) equal parts is that of units drawn without replacement: it is off by more
  than t with a probability of at most 2 exp(-m t² / (2 (s² + b t / 3))), with m units in the part, s² the variance
  over all units and b the largest deviation of one (Bernstein's inequality; Hoeffding 1963, theorem 4, for draws
  without replacement).

A document counts with at most as many tokens as a sample has, so that single books do not hide everything else.

All tests together are wrong with at most `FALSE_ALARM` (union bound): a mix in uniform order is called faulty at
most once in a million times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from emma.tools.mix.layout import DatasetInfo, SourceInfo

__all__ = ["FALSE_ALARM", "Order", "Quantity", "Units", "judge"]

FALSE_ALARM = 1e-6
"""Probability, at most, that a mix in uniform order is called faulty."""
_UNITS = 100_000
"""Units at most; more documents or samples are taken together, so many at a time."""
_PARTS = (10, 100)
"""Equal parts of a run whose means are tested; the last is what is shown."""
_LANGUAGES = 30
"""Languages that are looked at one by one, the largest ones."""


@dataclass(frozen=True)
class Quantity:
    """Something that should be the same all along a run.

    Attributes:
        name: e.g. `share of component bilingual`.
        mean: over the whole run.
        parts: its mean in each hundredth of the run (tenth, if there are fewer units than hundredths).
        low: what is no more than chance in a part, from here (0 at least) ...
        high: ... to there.
        z: of its trend over the run; in a uniform order about normal with standard deviation 1.
        least_trend: the smallest steady change, from the first unit to the last and relative to the mean, that
            fails with probability one half; more than 2 (from double to nothing) means that no trend would be seen.
        fault: what is wrong, in words; None if it is no more than chance.
    """

    name: str
    mean: float
    parts: list[float]
    low: float
    high: float
    z: float
    least_trend: float
    fault: str | None = None

    @property
    def silent(self) -> bool:
        """Whether there are too few units to see even the steepest trend."""
        return self.least_trend > 2


@dataclass(frozen=True)
class Order:
    """What the tests found: all quantities, the number of tests, units and what a unit is."""

    quantities: list[Quantity]
    tests: int
    units: int
    unit: str
    faults: list[str] = field(default_factory=list)

    @property
    def silent(self) -> list[str]:
        """Names of the quantities that the mix is too small to judge."""
        return [each.name for each in self.quantities if each.silent]

    def summary(self) -> str:
        """One sentence: what was seen, and what would have been."""
        heard = [each for each in self.quantities if not each.silent]
        if not heard:
            return f"order: {self.units:,} units are too few to tell a uniform order from any other"
        sharpest, dullest = (choose(heard, key=lambda each: each.least_trend) for choose in (min, max))
        text = (
            f"order: {len(heard)} quantities over {self.units:,} units of {self.unit}, {self.tests:,} tests, false alarm "
            f"at most {FALSE_ALARM:g}; largest trend {max(abs(each.z) for each in heard):.1f} standard deviations; a "
            f"steady change of {100 * sharpest.least_trend:.1f} % ({sharpest.name}) to {100 * dullest.least_trend:.0f} % "
            f"({dullest.name}) would be seen"
        )
        if self.silent:
            text += (
                f"; too small to judge: {', '.join(self.silent[:5])}{' ...' if len(self.silent) > 5 else ''}"
            )
        return text


class Units:
    """Sums over units, filled row by row.

    Args:
        info: the dataset.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.stream = info.packing == "concatenate"
        # The last row of a stream was not put in order but at the end, to make up the total.
        whole = info.rows - 1 if self.stream else info.samples
        self.together = max(1, -(-whole // _UNITS))
        self.count = whole // self.together
        self.names, members = _groups(info.sources)
        # Sources that belong to the same groups are counted together.
        self._members, self._class = np.unique(members, axis=1, return_inverse=True)
        self._tokens = np.zeros((self.count, self._members.shape[1]))
        self.rows = np.zeros(self.count)

    def add(self, rows: np.ndarray, place: np.ndarray) -> None:
        """Counts rows (`ROW`) of which the place in order, of the row itself or of its sample, is given (int64,
        ascending)."""
        unit = place // self.together
        mine = slice(0, int(np.searchsorted(unit, self.count)))
        unit, rows = unit[mine], rows[mine]
        if not len(unit):
            return
        least, size = int(unit[0]), int(unit[-1]) - int(unit[0]) + 1
        here = slice(least, least + size)
        self.rows[here] += np.bincount(unit - least, minlength=size)
        classes = self._members.shape[1]
        cell = (unit - least) * classes + self._class[rows["source"]]
        # A few books would drown everything else: no document counts for more than a sample.
        tokens = np.minimum(rows["tokens"], self.info.sequence_length + 1)
        self._tokens[here] += np.bincount(cell, tokens, size * classes).reshape(size, classes)

    def order(self, false_alarm: float = FALSE_ALARM) -> Order:
        """Tests the order."""
        tokens = self._members.astype(np.float64) @ self._tokens.T
        total = tokens[0]
        unit = ("document" if self.stream else "sample") + ("s" if self.together > 1 else "")
        length = self.together * self.info.sequence_length
        values: list[tuple[str, np.ndarray, np.ndarray]] = []
        if self.count:
            values.append(("mean length of a piece", total, self.rows))
            # Of a stream, each unit has as many documents; how many make a sample follows from their length.
            per_sample = (self.rows, total / self.info.sequence_length) if self.stream else (self.rows, np.full(self.count, self.together))  # fmt: skip
            values.append(("documents in a sample", *per_sample))
            if not self.stream:
                values.append(("filled part of a sample", total, np.full(self.count, length)))
            values += [(name, tokens[number], total) for number, name in enumerate(self.names) if number]
        return judge(
            values, self.count, f"{self.together} {unit}" if self.together > 1 else f"one {unit}", false_alarm
        )


def _groups(sources: Sequence[SourceInfo]) -> tuple[list[str], np.ndarray]:
    """Names of groups, and which sources belong to each (bool [groups, sources]). The first group is everything; a group that
    holds everything is left out otherwise."""
    found: dict[str, np.ndarray] = {"all": np.ones(len(sources), bool)}
    for number, source in enumerate(sources):
        keys = [f"share of component {source.component}"]
        if source.category is not None:
            keys.append(f"share of category {source.component}/{source.category}")
        for key in keys:
            found.setdefault(key, np.zeros(len(sources), bool))[number] = True
    largest = sorted(range(len(sources)), key=lambda number: (-sources[number].tokens, number))[:_LANGUAGES]
    for number in largest:
        source = sources[number]
        found[f"share of {source.component}/{source.language}"] = np.arange(len(sources)) == number
    reads = np.array([source.tokens > 0 for source in sources], bool)
    kept = {
        name: mine
        for name, mine in found.items()
        if name == "all" or ((mine & reads).any() and not mine[reads].all())
    }
    return list(kept), np.array(list(kept.values()))


def judge(
    values: Sequence[tuple[str, np.ndarray, np.ndarray]],
    units: int,
    unit: str,
    false_alarm: float = FALSE_ALARM,
) -> Order:
    """Tests quantities that are ratios of two sums over units.

    Args:
        values: name, numerator and denominator of each quantity (float [units]).
        units: number of units.
        unit: what one is, in words.
        false_alarm: probability, at most, that a uniform order is called faulty.
    """
    divisions = [parts for parts in _PARTS if units >= parts]
    tests = len(values) * (1 + sum(divisions))
    # Both sides of a test together have the probability 2 exp(-level).
    level = math.log(2 * tests / false_alarm) if tests else 0.0
    quantities = [_test(name, upper, lower, divisions, level) for name, upper, lower in values]
    faults = [each.fault for each in quantities if each.fault is not None]
    return Order(quantities, tests, units, unit, faults)


def _test(
    name: str, upper: np.ndarray, lower: np.ndarray, divisions: Sequence[int], level: float
) -> Quantity:
    count = len(upper)
    mean = float(upper.sum() / lower.sum()) if lower.sum() else 0.0
    # What a unit has more than its due: 0 on average, whatever the order.
    x = upper - mean * lower
    half = count // 2
    weights = (count - 1) / 2 - np.arange(half)
    terms = weights * (x[::-1][:half] - x[:half])
    spread = math.sqrt(float((terms**2).sum()))
    z = float(terms.sum()) / spread if spread > 0 else 0.0
    size = float(np.abs(lower).mean()) * abs(mean)
    # A share that grows from 1 - d/2 to 1 + d/2 times its mean adds d·size·2w/(N-1) to a pair's difference.
    slope = size * float((weights * 2 * weights).sum()) / max(count - 1, 1)
    least_trend = math.sqrt(2 * level) * spread / slope if slope > 0 else math.inf
    if spread == 0:
        least_trend = 0.0 if size > 0 and count > 1 else math.inf
    fault = None
    if abs(z) > math.sqrt(2 * level):
        fault = f"{name} changes over the run: {abs(z):.1f} standard deviations of a uniform order, {'up' if z > 0 else 'down'}"
    means: list[float] = []
    low = high = mean
    variance, largest = float((x**2).mean()) if count else 0.0, float(np.abs(x).max(initial=0.0))
    for parts in divisions:
        bounds = np.linspace(0, count, parts + 1).astype(np.int64)
        sums, sizes = (np.add.reduceat(each, bounds[:-1]) for each in (x, lower))
        means = (mean + np.divide(sums, sizes, out=np.zeros(parts), where=sizes != 0)).tolist()
        limit = _bernstein(np.diff(bounds), variance, largest, level)
        reach = float(limit.max() / max(float(sizes.mean()), 1e-300))
        # No quantity is below 0, and a share not above 1.
        low, high = max(mean - reach, 0.0), mean + reach
        if (upper <= lower).all():
            high = min(high, 1.0)
        if fault is None and (np.abs(sums) > limit).any():
            part = int(np.argmax(np.abs(sums) / limit))
            fault = (
                f"{name} is {means[part]:.4g} in part {part + 1} of {parts} of the run, but {mean:.4g} over all of it: more "
                "than a uniform order makes likely"
            )
    return Quantity(name, mean, means, low, high, z, least_trend, fault)


def _bernstein(many: np.ndarray, variance: float, largest: float, level: float) -> np.ndarray:
    """The sum over `many` units that is exceeded, on either side, with the probability 2 exp(-level)."""
    linear = largest * level / 3
    return linear + np.sqrt(linear**2 + 2 * many * variance * level)
