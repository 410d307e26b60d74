"""How often a verdict is wrong where there is no difference, over a whole page, and how large a difference it finds.

    python -m benchmarks.verdicts [--trials 2000] [--pages 100]

Prints the tables of docs/verdicts.md. Everything is drawn with fixed seeds through the product's own routine.
"""

from __future__ import annotations

import argparse
import functools
import math
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from emma.tools.evaluation.significance import (
    LEAST,
    LEVEL,
    Score,
    Verdict,
    compare_languages,
    judge,
    paired_test,
    two_errors,
)

__all__ = ["COUNTS", "EXTREME", "LOPSIDED", "NULLS", "false_verdicts", "page", "power"]

COUNTS = (2, 3, 4, 6, 9, 10, 11, 12, 14, 15, 17, 20, 24, 30, 40, 50, 100, 204, 500, 1000)
"""Numbers of units at which the rates are measured."""

type Draw = Callable[[np.random.Generator, int, int], NDArray[np.float64]]
"""(generator, comparisons, units) → differences [comparisons, units]."""


def _binary(draw: np.random.Generator, rows: int, units: int) -> NDArray[np.float64]:
    ease = draw.random((rows, units))
    right = [(draw.random((rows, units)) < 0.1 + 0.8 * ease).astype(float) for _ in range(2)]
    return right[1] - right[0]


def _likelihoods(draw: np.random.Generator, rows: int, units: int) -> NDArray[np.float64]:
    """Documents of very different lengths, and heavy tails: the variance of a document's difference is infinite."""
    length = draw.lognormal(6, 1.5, (rows, units))
    return length * draw.standard_t(1.8, (rows, units))


def _normal(draw: np.random.Generator, rows: int, units: int) -> NDArray[np.float64]:
    return draw.normal(size=(rows, units))


def _tied(draw: np.random.Generator, rows: int, units: int) -> NDArray[np.float64]:
    """Graded scores, 85 % of them equal under both models, the others from a scale of few values."""
    values = draw.integers(-3, 4, (rows, units)) / 3
    return np.where(draw.random((rows, units)) < 0.85, 0.0, values)


def _clustered(draw: np.random.Generator, rows: int, units: int) -> NDArray[np.float64]:
    """Passages with one to eight questions, right or wrong together more often than not; summed over a passage."""
    lean = draw.normal(0, 0.35, (rows, units))
    total = np.zeros((rows, units))
    questions = draw.integers(1, 9, (rows, units))
    for number in range(8):
        chance = draw.random((rows, units))
        step = (chance < np.clip(0.2 + lean, 0, 0.5)).astype(float)
        step -= (chance > 1 - np.clip(0.2 - lean, 0, 0.5)).astype(float)
        total += np.where(number < questions, step, 0.0)
    return total


NULLS: Mapping[str, Draw] = {
    "right or wrong": _binary,
    "likelihoods, heavy tails": _likelihoods,
    "normal": _normal,
    "mostly ties": _tied,
    "passages": _clustered,
}
"""Kinds of data without a true difference, under exchangeable models."""


def _log_normal(draw: np.random.Generator, rows: int, units: int, sigma: float = 1.0) -> NDArray[np.float64]:
    return draw.lognormal(0, sigma, (rows, units)) - math.exp(sigma**2 / 2)


def _rare(
    draw: np.random.Generator, rows: int, units: int, *, share: float, away: float
) -> NDArray[np.float64]:
    """Normal, but a share of the units lies `away` on one side, and the others as far on the other that the mean is 0."""
    return draw.normal(size=(rows, units)) + away * ((draw.random((rows, units)) < share) - share)


LOPSIDED: Mapping[str, Draw] = {
    "exponential": lambda draw, rows, units: draw.exponential(1.0, (rows, units)) - 1,
    "log-normal": _log_normal,
    "Pareto, α 3": lambda draw, rows, units: draw.pareto(3, (rows, units)) - 0.5,
    "χ², 1": lambda draw, rows, units: draw.chisquare(1, (rows, units)) - 1,
    "beta, ½ and 5": lambda draw, rows, units: draw.beta(0.5, 5, (rows, units)) - 1 / 11,
    "exponential × length": lambda draw, rows, units: (
        draw.lognormal(0, 0.7, (rows, units)) * (draw.exponential(1.0, (rows, units)) - 1)
    ),
    "half zeros": lambda draw, rows, units: (
        _log_normal(draw, rows, units) * (draw.random((rows, units)) < 0.5)
    ),
    "20 % at 4": functools.partial(_rare, share=0.2, away=4.0),
    "10 % at 5": functools.partial(_rare, share=0.1, away=5.0),
}
"""Kinds of data with mean zero under models that are not exchangeable: large differences lie on one side."""

EXTREME: Mapping[str, Draw] = {
    "log-normal, σ 1.5": functools.partial(_log_normal, sigma=1.5),
    "log-normal × length": lambda draw, rows, units: (
        draw.lognormal(0, 0.7, (rows, units)) * _log_normal(draw, rows, units)
    ),
}
"""The same, beyond what the tests are made for: a sample of few units often has none of what makes the mean zero."""


def false_verdicts(kind: str, units: int, trials: int = 2000) -> float:
    """Share of comparisons without a true difference that are called clear, each judged by itself."""
    draw = np.random.default_rng([zlib.crc32(kind.encode()), units])
    if kind == "corpus score":
        p = np.array([_corpus_p(draw, units) for _ in range(trials)])
    elif kind == "errors only":
        p = np.array([_unpaired_p(draw, units) for _ in range(trials)])
    else:
        p, _ = paired_test({**NULLS, **LOPSIDED, **EXTREME}[kind](draw, trials, units))
    return float(np.mean(p <= LEVEL))


def _corpus_p(draw: np.random.Generator, units: int) -> float:
    """An F-score of sums over sentences of very different lengths, as chrF and BLEU are."""
    length = draw.lognormal(3, 0.7, units).round() + 1
    ease = draw.beta(4, 4, units)
    tables = []
    for _ in range(2):
        chance = np.clip(ease + draw.normal(0, 0.12, units), 0, 1)
        said = np.maximum(1, (length * draw.lognormal(0, 0.2, units)).round())
        tables.append(
            np.stack([draw.binomial(length.astype(int), chance), said, length], axis=1).astype(float)
        )
    scores = [
        Score(0.0, statistics={str(number): row for number, row in enumerate(table.tolist())}, n=units)
        for table in tables
    ]
    (row,) = compare_languages(
        *({"a": score} for score in scores),
        better="higher",
        value_of=lambda row: float(2 * row[0] / (row[1] + row[2])),
    )
    return 1.0 if row.p is None else row.p


def _unpaired_p(draw: np.random.Generator, units: int) -> float:
    scores = []
    for _ in range(2):
        right = draw.random(units) < 0.6
        share = float(right.mean())
        scores.append(Score(share, (share * (1 - share) / max(1, units - 1)) ** 0.5, n=units))
    p, _, _ = two_errors(scores[0], scores[1])
    return 1.0 if p is None else p


def page(
    seed: int, *, languages: int = 546, benchmarks: int = 12, share: float = 0.3, effect: float = 0.08
) -> tuple[int, int, int]:
    """A page in which a share of all differences are real; items are common to all languages of a benchmark, some easier
    for one model than for the other, so the comparisons depend on each other.

    Returns:
        The number of clear verdicts, of those the wrong ones (no difference, or the other direction), and of real
        differences.
    """
    draw = np.random.default_rng([seed, 77])
    rows: list[Verdict] = []
    truth: list[float] = []
    for _ in range(benchmarks):
        items = int(draw.integers(100, 400))
        ease = 0.2 + 0.6 * draw.random(items)
        real = np.where(draw.random(languages) < share, effect * draw.choice((-1, 1, 1, 1), languages), 0.0)
        base = draw.random((languages, items)) < ease
        trained = draw.random((languages, items)) < np.clip(ease + real[:, None], 0, 1)
        changes = trained.astype(float) - base
        p, names = paired_test(changes)
        for number in range(languages):
            change = float(changes[number].mean())
            rows.append(
                Verdict("", 0, change, change, None, float(p[number]), str(names[number]), items, "higher")
            )
        truth += real.tolist()
    judged = judge(rows)
    clear = [(row.verdict, real) for row, real in zip(judged, truth, strict=True) if row.verdict != "tie"]
    wrong = sum(real == 0 or (real > 0) != (verdict == "win") for verdict, real in clear)
    return len(clear), wrong, sum(real != 0 for real in truth)


def power(units: int, effect: float, kind: str, *, tests: int = 1, trials: int = 500) -> float:
    """Chance that a difference is found: alone, or as the one real difference among `tests` comparisons.

    Args:
        units: independent units.
        effect: accuracy points (`right or wrong`, base accuracy 50 %), or standard deviations of a document's
            difference (`likelihoods`).
        kind: `right or wrong` or `likelihoods`.
        tests: comparisons judged together, all others without a difference.
        trials: simulated comparisons.
    """
    draw = np.random.default_rng([units, int(effect * 1000), trials])
    if kind == "right or wrong":
        ease = 0.1 + 0.8 * draw.random((trials, units))
        base = draw.random((trials, units)) < ease
        changes = (draw.random((trials, units)) < np.clip(ease + effect / 100, 0, 1)).astype(float) - base
    else:
        changes = effect + draw.normal(size=(trials, units))
    p, _ = paired_test(changes)
    # A single finding passes Benjamini and Hochberg's first step.
    return float(np.mean(p <= LEVEL / tests))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000, help="simulated comparisons per rate")
    parser.add_argument("--pages", type=int, default=100, help="simulated pages")
    options = parser.parse_args()
    for kinds in ([*NULLS, "errors only", "corpus score"], [*LOPSIDED, *EXTREME]):
        print(f"| units | {' | '.join(kinds)} |\n|---:|{'---:|' * len(kinds)}")
        for units in COUNTS:
            cells = [f"{100 * false_verdicts(kind, units, options.trials):.1f} %" for kind in kinds]
            print(
                f"| {units}{'' if units >= LEAST else ' (nothing said)'} | {' | '.join(cells)} |", flush=True
            )
        print()
    for name, share in (
        ("30 % of the differences are real", 0.3),
        ("2 % are real", 0.02),
        ("none is real", 0.0),
    ):
        found = [page(seed, share=share) for seed in range(options.pages)]
        rate = np.mean([wrong / clear if clear else 0.0 for clear, wrong, _ in found])
        clear, wrong, real = np.mean(found, axis=0)
        print(f"| {name} | {real:,.0f} | {clear:,.1f} | {wrong:.2f} | {100 * rate:.2f} % |", flush=True)
    print()
    for kind, effects, unit in (
        ("right or wrong", (3, 5, 10, 20), "points"),
        ("likelihoods", (0.2, 0.5, 1.0, 2.0), "standard deviations"),
    ):
        print(f"| {kind}: units | {' | '.join(f'{effect:g} {unit}' for effect in effects)} |")
        print(f"|---:|{'---:|' * len(effects)}")
        for units in (10, 20, 50, 100, 204, 500, 900):
            cells = [
                f"{100 * power(units, effect, kind):.0f} / {100 * power(units, effect, kind, tests=100):.0f} %"
                for effect in effects
            ]
            print(f"| {units} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
