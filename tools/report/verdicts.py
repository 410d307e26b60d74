"""All verdicts of a page, controlled together: held-out text and benchmarks, every language, every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from emma.tools.evaluation.comparison import BenchmarkScores, benchmark_scores, benchmarks_of, compare_scores
from emma.tools.evaluation.gains import Gains, gains_of
from emma.tools.evaluation.significance import LEAST, Tally, Verdict, judge, tally
from emma.tools.evaluation.stored import EvaluatedModel, item_scores
from emma.tools.report.records import RunRecord

__all__ = ["Compared", "Judged", "interval", "judge_page", "latest"]


@dataclass(frozen=True)
class Compared:
    """A run's latest model on a benchmark, its base, and the judged tests; no base and no tests if it was not
    evaluated."""

    scores: BenchmarkScores
    base: str | None = None
    base_scores: BenchmarkScores | None = None
    rows: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """A page's verdicts: `runs` with those on held-out text, `benchmarks` by run and benchmark, `against` the gains of
    each other run over the first, and what all of them amount to."""

    runs: list[RunRecord]
    benchmarks: dict[tuple[str, str], Compared]
    against: dict[str, Gains]
    tally: Tally


def latest(run: RunRecord, role: str = "trained") -> EvaluatedModel | None:
    """The run's latest evaluated model of a role (`trained` or `base`)."""
    models = [model for model in run.models if model.role == role]
    return models[-1] if models else None


def interval(difference: float, error: float | None, n: int) -> list[float] | None:
    """95 % interval of a difference, by t over its units; None below the least number that a verdict needs too.

    Args:
        difference: of the two models.
        error: its standard error.
        n: documents or items behind it.
    """
    from scipy.stats import t

    if error is None or n < LEAST:
        return None
    reach = float(t.ppf(0.975, n - 1)) * error
    return [difference - reach, difference + reach]


def judge_page(runs: Sequence[RunRecord], against: Mapping[str, Gains] | None = None) -> Judged:
    """Tests everything that a page compares, and judges it together.

    Args:
        runs: the page's runs, each against its own base.
        against: by run, its gains over the first run, if the page shows them.

    Raises:
        UserError: a run and its base were scored on different items, or another version wrote its gains.
    """
    own = {
        run.name: gains_of(run.gains, run.folder / "evaluation" / "gains.json") for run in runs if run.gains
    }
    compared = {
        (run.name, name): found
        for run in runs
        for name in benchmarks_of(run.results)
        if (found := _compared(run, name)) is not None
    }
    others = dict(against or {})
    parts: list[Sequence[Any]] = [
        *(gains.languages for gains in own.values()),
        *(gains.languages for gains in others.values()),
        *(found.rows for found in compared.values()),
    ]
    rows = judge([row for part in parts for row in part])
    rest = iter(rows)
    judged = iter([[next(rest) for _ in part] for part in parts])
    own = {name: gains.with_verdicts(next(judged)) for name, gains in own.items()}
    others = {name: gains.with_verdicts(next(judged)) for name, gains in others.items()}
    compared = {key: replace(found, rows=next(judged)) for key, found in compared.items()}
    records = [
        replace(run, gains={**(run.gains or {}), **own[run.name].to_dict()}) if run.name in own else run
        for run in runs
    ]
    return Judged(records, compared, others, tally(rows))


def _compared(run: RunRecord, name: str) -> Compared | None:
    trained, base = latest(run), latest(run, "base")
    if trained is None:
        return None
    folder = run.folder / "evaluation"
    scores = benchmark_scores(run.results, trained.name, name, items=item_scores(folder, trained.name))
    if scores is None or base is None:
        return None if scores is None else Compared(scores)
    items = item_scores(folder, base.name)
    before = benchmark_scores(run.results, base.name, name, key=scores.metric.key, items=items)
    return Compared(scores, base.name, before, compare_scores(before, scores) if before is not None else [])
