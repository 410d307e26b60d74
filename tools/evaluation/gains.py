"""What a trained model gained and forgot relative to its base, per language and per group of languages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import UserError
from emma.tools.evaluation.bootstrap import average
from emma.tools.evaluation.groups import ENGLISH, LANGUAGE_KINDS, LanguageFacts
from emma.tools.evaluation.journal import LanguageScores
from emma.tools.evaluation.pooling import PooledGroup, pool_groups
from emma.tools.evaluation.significance import judge, tally, units_p
from emma.tools.languages.codes import language

__all__ = ["Gains", "GroupGain", "LanguageGain", "compare", "gains_of"]


@dataclass(frozen=True)
class LanguageGain:
    """Bits per byte of one language under both models; a negative difference is a gain.

    `error` is the standard error of the difference over documents, None for one document. `p`, `test`, `adjusted` and
    `verdict` (`win`, `loss` or `tie`) are those of `significance.Verdict`; the documents are the units. `pooled` is the
    difference in the light of the other languages, with its 95 % interval (`pooling.pool_groups`); None for English, and
    where there are too few others.
    """

    kind: str
    language: str
    category: str | None
    trained_on: bool | None
    seen_by_base: bool | None
    n: int
    bytes: int
    base: float
    trained: float
    difference: float
    error: float | None
    p: float | None
    test: str
    adjusted: float | None = None
    verdict: str = "tie"
    pooled: float | None = None
    pooled_low: float | None = None
    pooled_high: float | None = None

    @property
    def better(self) -> str:
        """Which direction is an improvement."""
        return "lower"


@dataclass(frozen=True)
class GroupGain:
    """Averages over the languages of a group, each counted once; `error` accounts for languages as a sample, each
    measured on a sample of documents. `wins` and `losses` count the members' verdicts."""

    kind: str
    group: str
    languages: int
    base: float
    trained: float
    difference: float
    error: float | None
    lower: int
    wins: int
    losses: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Gains:
    """Base and trained model, in bits per byte; `pooled` are groups of languages other than English."""

    base: str
    trained: str
    signature: str
    languages: tuple[LanguageGain, ...]
    groups: tuple[GroupGain, ...]
    pooled: tuple[PooledGroup, ...] = ()

    def with_verdicts(self, languages: Sequence[LanguageGain]) -> Gains:
        """The same comparison after its languages were judged, perhaps together with others on a page."""
        verdicts = {(row.kind, row.language): row.verdict for row in languages}
        groups = []
        for group in self.groups:
            found = [verdicts[group.kind, name] for name in group.members]
            groups.append(replace(group, wins=found.count("win"), losses=found.count("loss")))
        return replace(self, languages=tuple(languages), groups=tuple(groups))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to `gains.json`."""
        counts = asdict(tally(self.languages))
        return {"metric": "bits_per_byte", **asdict(self), "verdicts": counts}


def gains_of(value: Mapping[str, Any], path: Path) -> Gains:
    """The comparison in the content of a `gains.json`.

    Raises:
        UserError: another version wrote it.
    """
    try:
        return Gains(
            value["base"],
            value["trained"],
            value["signature"],
            tuple(LanguageGain(**row) for row in value["languages"]),
            tuple(GroupGain(**{**row, "members": tuple(row["members"])}) for row in value["groups"]),
            tuple(PooledGroup(**row) for row in value["pooled"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: written by another version ({error}); run `emma evaluate run` with --base again: finished "
            "languages are kept"
        ) from None


def compare(
    base: str,
    trained: str,
    scores_of_base: Mapping[tuple[str, str], LanguageScores],
    scores_of_trained: Mapping[tuple[str, str], LanguageScores],
    facts: LanguageFacts,
) -> Gains:
    """Differences between two models on the same documents.

    Args:
        base: name of the base model.
        trained: name of the trained model.
        scores_of_base: by kind and language.
        scores_of_trained: by kind and language.
        facts: categories of the languages, and whether the base and the mix contain them.

    Raises:
        UserError: the models have no language in common, or were scored on different documents of one.
    """
    common = sorted(set(scores_of_base) & set(scores_of_trained))
    if not common:
        raise UserError(f"{base} and {trained} have no language in common; evaluate both on the same text")
    gains = judge([_language_gain(scores_of_base[key], scores_of_trained[key], facts) for key in common])
    signature = scores_of_trained[common[0]].signature
    gains, pooled = _pooled(gains, facts)
    return Gains(base, trained, signature, tuple(gains), tuple(_groups(gains, facts)), tuple(pooled))


def _pooled(gains: list[LanguageGain], facts: LanguageFacts) -> tuple[list[LanguageGain], list[PooledGroup]]:
    """The languages with their pooled differences, and the groups by category, script and family."""
    groups: list[PooledGroup] = []
    languages: dict[tuple[str, str], tuple[float, float, float]] = {}
    for kind in LANGUAGE_KINDS:
        rows = [row for row in gains if row.kind == kind and row.language != ENGLISH]
        members: dict[tuple[str, str], list[str]] = {("all", "all but English"): []}
        members |= {("category", name): [] for name in facts.categories}
        for row in rows:
            # A pair without English is about two languages.
            codes = [code for code in row.language.split("-") if code != ENGLISH]
            known = language(codes[0]) if len(codes) == 1 else None
            keys = [("all", "all but English"), ("category", row.category)]
            keys += [("script", known.script), ("family", known.family)] if known else []
            for dimension, name in keys:
                if name is not None:
                    members.setdefault((dimension, name), []).append(row.language)
        order = sorted(members, key=lambda key: ("all", "category", "script", "family").index(key[0]))
        found, values = pool_groups(kind, rows, {key: members[key] for key in order})
        groups += found
        languages |= {(kind, name): value for name, value in values.items()}
    none = (None, None, None)
    return [
        replace(row, pooled=value, pooled_low=low, pooled_high=high)
        for row in gains
        for value, low, high in [languages.get((row.kind, row.language), none)]
    ], groups


def _language_gain(base: LanguageScores, trained: LanguageScores, facts: LanguageFacts) -> LanguageGain:
    kind, language = base.kind, base.language
    if base.text_sha256 != trained.text_sha256:
        raise UserError(
            f"{kind}/{language}: the two models were scored on different documents; evaluate both again"
        )
    sizes = np.array([document.bytes for document in base.documents], np.float64)
    before = np.array([document.nll for document in base.documents]) / math.log(2)
    after = np.array([document.nll for document in trained.documents]) / math.log(2)
    change, total, count = after - before, sizes.sum(), len(sizes)
    difference = float(change.sum() / total)
    # The error of a ratio of sums, by its linear approximation (Cochran 1977, section 6.3).
    rest = change - difference * sizes
    error = float(np.sqrt(count / (count - 1) * np.sum(rest**2)) / total) if count > 1 else None
    p, test = units_p(change)
    return LanguageGain(
        kind,
        language,
        facts.category_of(kind, language),
        facts.is_trained(kind, language),
        facts.is_seen(language),
        count,
        int(total),
        float(before.sum() / total),
        float(after.sum() / total),
        difference,
        error,
        p,
        test,
    )


def _groups(gains: list[LanguageGain], facts: LanguageFacts) -> list[GroupGain]:
    def in_category(name: str) -> Callable[[LanguageGain], bool]:
        return lambda gain: gain.category == name

    tests: list[tuple[str, Callable[[LanguageGain], bool]]] = [("all but English", lambda _: True)]
    tests += [(category, in_category(category)) for category in facts.categories]
    if facts.categories:
        tests.append(("no category", lambda gain: gain.category is None))
    tests += [
        ("seen by the base", lambda gain: gain.seen_by_base is True),
        ("unseen by the base", lambda gain: gain.seen_by_base is False),
        ("in the mix", lambda gain: gain.trained_on is True),
        ("not in the mix", lambda gain: gain.trained_on is False),
    ]
    groups = []
    kinds = dict.fromkeys(gain.kind for gain in gains)
    for kind in sorted(kinds, key=lambda kind: (kind not in LANGUAGE_KINDS, kind)):
        if kind not in LANGUAGE_KINDS:
            groups.append(_group(kind, "all", [gain for gain in gains if gain.kind == kind]))
            continue
        apart = [gain for gain in gains if gain.kind == kind and gain.language != ENGLISH]
        selections = [(name, [gain for gain in apart if test(gain)]) for name, test in tests]
        selections.append(
            ("English", [gain for gain in gains if gain.kind == kind and gain.language == ENGLISH])
        )
        groups += [_group(kind, name, members) for name, members in selections if members]
    return groups


def _group(kind: str, name: str, members: list[LanguageGain]) -> GroupGain:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    change = average(
        [gain.difference for gain in members], f"{kind}/{name}", errors=[gain.error for gain in members]
    )
    return GroupGain(
        kind,
        name,
        len(members),
        mean([gain.base for gain in members]),
        mean([gain.trained for gain in members]),
        change.value,
        change.error,
        sum(gain.difference < 0 for gain in members),
        sum(gain.verdict == "win" for gain in members),
        sum(gain.verdict == "loss" for gain in members),
        tuple(gain.language for gain in members),
    )
