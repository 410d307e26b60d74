"""The page of a merge: what it restored of what a parent had lost against their base, and what it lost of what one had won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.tools.evaluation.comparison import benchmark_scores, benchmarks_of, compare_scores
from emma.tools.evaluation.gains import Gains, LanguageGain, compare
from emma.tools.evaluation.groups import LanguageFacts, order_categories
from emma.tools.evaluation.results import Result, read_results
from emma.tools.evaluation.significance import Tally, Verdict, judge, tally
from emma.tools.evaluation.stored import EvaluatedModel, evaluated_models, item_scores, stored_scores
from emma.tools.report.page import render

__all__ = ["Evaluated", "Fate", "MergeView", "Parent", "merge_page", "merge_view", "read_evaluated"]


@dataclass(frozen=True)
class Evaluated:
    """The latest model of an evaluation folder, and the base beside it."""

    folder: Path
    model: EvaluatedModel
    base: EvaluatedModel
    results: list[Result]
    gains: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return self.model.name


@dataclass(frozen=True)
class Fate:
    """What became of a parent's clear gain or loss against the base in one language of one test.

    Attributes:
        test: kind of held-out text, or benchmark.
        language: language or pair.
        base, parent, child: values.
        fate: `restored`, `still lost`, `kept` or `lost`.
        part: of the parent's change that the child undid; above 1, it went beyond the base.
    """

    test: str
    language: str
    base: float
    parent: float
    child: float
    fate: Literal["restored", "still lost", "kept", "lost"]
    part: float


@dataclass(frozen=True)
class Parent:
    """A parent, and the child against it: all clear changes, and their comparison."""

    name: str
    fates: list[Fate]
    against: Gains | None

    def count(self, fate: str) -> int:
        """How many tests have this fate."""
        return sum(each.fate == fate for each in self.fates)


@dataclass(frozen=True)
class Row:
    """A group of languages or a benchmark: value of the base, and change of each model against it (parents, then child);
    `better` is `lower` or `higher`."""

    test: str
    group: str
    languages: int
    base: float
    changes: list[float | None]
    better: str

    @property
    def best(self) -> int | None:
        """Place of the best change, of at least two."""
        known = [change for change in self.changes if change is not None]
        if len(known) < 2:
            return None
        return self.changes.index(min(known) if self.better == "lower" else max(known))


@dataclass(frozen=True)
class MergeView:
    """The page's content: models are the parents, then the child."""

    child: str
    base: str
    models: list[str]
    parents: list[Parent]
    rows: list[Row]
    tally: Tally


def read_evaluated(name: str) -> Evaluated:
    """A model's evaluation: a folder that `emma evaluate run` has written, or a RUN's.

    Raises:
        UserError: there is none, or it holds no base to compare with.
    """
    from emma.tools.evaluation.targets import resolve_run

    folder = Path(name)
    if not (folder / "models.json").is_file():
        if (folder / "config.json").is_file() or (folder / "manifest.json").is_file():
            raise UserError(
                f"{folder}: is a model; its evaluation lies in the folder that `emma evaluate run {folder} --base BASE` "
                f"writes. Fix: name that folder (evaluation/{folder.resolve().name})"
            )
        folder = resolve_run(name)[0] / "evaluation"
    models = evaluated_models(folder)
    trained = [model for model in models if model.role == "trained"]
    base = [model for model in models if model.role == "base"]
    if not trained or not base:
        raise UserError(
            f"{folder}: holds no evaluation of a model and its base. Fix: `emma evaluate run MODEL --base BASE`"
        )
    gains = read_json(folder / "gains.json") if (folder / "gains.json").is_file() else {"languages": []}
    return Evaluated(folder, trained[-1], base[-1], read_results(folder), gains)


def merge_view(child: Evaluated, parents: Sequence[Evaluated]) -> MergeView:
    """Compares a merge with its parents, and each with their base; all verdicts are controlled together.

    Raises:
        UserError: the models were compared with different bases, have one name, or were scored on different text.
    """
    models = [*parents, child]
    names = [each.name for each in models]
    if not parents or len(set(names)) < len(names):
        raise UserError(f"name a merge and its parents, each once (given: {', '.join(names)})")
    for each in models:
        if each.base.sha256 != child.base.sha256:
            raise UserError(
                f"{each.folder}: {each.name} was compared with {each.base.name}, which is not the {child.base.name} of "
                f"{child.name}. Fix: evaluate all with the same --base"
            )
    facts = _facts(models)
    own = [_tests(each, each.base, each, each.model, facts) for each in models]
    against = [_tests(each, each.model, child, child.model, facts) for each in parents]
    sets = [tests for _, found in (*own, *against) for tests in found.values()]
    judged = iter(judge([row for rows in sets for row in rows]))
    verdicts = [
        {test: [next(judged) for _ in rows] for test, rows in found.items()} for _, found in (*own, *against)
    ]
    before, after = verdicts[: len(models)], verdicts[len(models) :]
    return MergeView(
        child.name,
        child.base.name,
        names,
        [
            Parent(each.name, _fates(mine, then), gains)
            for each, mine, then, (gains, _) in zip(parents, before[:-1], after, against, strict=True)
        ],
        _rows(before),
        tally([row for found in verdicts for rows in found.values() for row in rows]),
    )


def merge_page(view: MergeView) -> str:
    """HTML of the page."""
    return render("merge.html.j2", view=view)


_Tests = dict[str, list[Any]]


def _tests(
    one: Evaluated, first: EvaluatedModel, other: Evaluated, second: EvaluatedModel, facts: LanguageFacts
) -> tuple[Gains | None, _Tests]:
    """Tests of the second model against the first: held-out text by kind, then benchmarks."""
    found: _Tests = {}
    scores = [
        stored_scores(each.folder, model, each.results) for each, model in ((one, first), (other, second))
    ]
    gains = None
    if set(scores[0]) & set(scores[1]):
        gains = compare(first.name, second.name, scores[0], scores[1], facts)
        for row in gains.languages:
            found.setdefault(row.kind, []).append(row)
    theirs = set(benchmarks_of(one.results))
    for name in benchmarks_of(other.results):
        if name not in theirs:
            continue
        after = benchmark_scores(
            other.results, second.name, name, items=item_scores(other.folder, second.name)
        )
        if after is None:
            continue
        items = item_scores(one.folder, first.name)
        before = benchmark_scores(one.results, first.name, name, key=after.metric.key, items=items)
        if before is not None and (rows := compare_scores(before, after)):
            found[name] = list(rows)
    return gains, found


def _facts(models: Sequence[Evaluated]) -> LanguageFacts:
    category = {
        (row["kind"], row["language"]): row["category"]
        for each in models
        for row in each.gains["languages"]
        if row["category"]
    }
    return LanguageFacts(category, order_categories(category.values()))


def _fates(own: _Tests, then: _Tests) -> list[Fate]:
    """Of every clear change of a parent against the base: what the child did with it."""
    fates = []
    for test, rows in own.items():
        child = {row.language: row for row in then.get(test, [])}
        for row in rows:
            if row.verdict == "tie" or row.language not in child:
                continue
            turned = child[row.language]
            fate: Literal["restored", "still lost", "kept", "lost"]
            if row.verdict == "loss":
                fate = "restored" if turned.verdict == "win" else "still lost"
            else:
                fate = "lost" if turned.verdict == "loss" else "kept"
            part = -turned.difference / row.difference
            fates.append(Fate(test, row.language, row.base, row.trained, turned.trained, fate, part))
    order = ("restored", "lost", "still lost", "kept")
    return sorted(fates, key=lambda each: (order.index(each.fate), each.test, -each.part, each.language))


def _rows(tests: Sequence[_Tests]) -> list[Row]:
    """Means over the languages that all models were tested in: English apart, then by category, then by benchmark."""
    rows = []
    for test in dict.fromkeys(name for found in tests for name in found):
        tables = [{row.language: row for row in found.get(test, [])} for found in tests]
        present = [table for table in tables if table]
        common = set.intersection(*(set(table) for table in present))
        groups: dict[str, list[str]] = {}
        for language in sorted(common):
            row: LanguageGain | Verdict = present[0][language]
            kind = "English" if language == "eng_Latn" else "all but English"
            groups.setdefault(kind, []).append(language)
            if isinstance(row, LanguageGain) and row.category and language != "eng_Latn":
                groups.setdefault(row.category, []).append(language)
        names: list[str] = [name for name in ("all but English", "English") if name in groups]
        names += order_categories(name for name in groups if name not in names)
        for name in names:
            members = groups[name]
            base = sum(present[0][each].base for each in members) / len(members)
            changes = [
                sum(table[each].difference for each in members) / len(members) if table else None
                for table in tables
            ]
            rows.append(Row(test, name, len(members), base, changes, present[0][members[0]].better))
    return rows
