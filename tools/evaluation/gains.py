"""What a trained model gained and forgot relative to its base, per language and per group of languages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emma.base.errors import UserError
from emma.tools.evaluation.bootstrap import average, error_of, ratio_draws
from emma.tools.evaluation.groups import ENGLISH, LANGUAGE_KINDS, LanguageFacts
from emma.tools.evaluation.journal import LanguageScores
from emma.tools.evaluation.results import BENCHMARK

__all__ = ["Gains", "GroupGain", "LanguageGain", "compare"]

_CLEAR = 2.0


@dataclass(frozen=True)
class LanguageGain:
    """Bits per byte of one language under both models; a negative difference is a gain.

    `error` is the standard error of the difference, from a bootstrap paired over documents; None for one document.
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

    @property
    def verdict(self) -> str:
        """`gain` or `loss` if the difference exceeds two standard errors, else `tie`."""
        if self.error is None or abs(self.difference) <= _CLEAR * self.error:
            return "tie"
        return "gain" if self.difference < 0 else "loss"


@dataclass(frozen=True)
class GroupGain:
    """Averages over the languages of a group, each counted once; `error` accounts for languages as a sample, each
    measured on a sample of documents."""

    kind: str
    group: str
    languages: int
    base: float
    trained: float
    difference: float
    error: float | None
    lower: int
    gains: int
    losses: int


@dataclass(frozen=True)
class Gains:
    """Base and trained model, in bits per byte."""

    base: str
    trained: str
    signature: str
    languages: tuple[LanguageGain, ...]
    groups: tuple[GroupGain, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to `gains.json`."""
        value = asdict(self)
        for row, language in zip(value["languages"], self.languages, strict=True):
            row["verdict"] = language.verdict
        return {"metric": "bits_per_byte", **value}


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
    gains = [_language_gain(scores_of_base[key], scores_of_trained[key], facts) for key in common]
    signature = scores_of_trained[common[0]].signature
    return Gains(base, trained, signature, tuple(gains), tuple(_groups(gains, facts)))


def _language_gain(base: LanguageScores, trained: LanguageScores, facts: LanguageFacts) -> LanguageGain:
    kind, language = base.kind, base.language
    if base.text_sha256 != trained.text_sha256:
        raise UserError(
            f"{kind}/{language}: the two models were scored on different documents; evaluate both again"
        )
    sizes = [document.bytes for document in base.documents]
    of_base = [document.nll / math.log(2) for document in base.documents]
    of_trained = [document.nll / math.log(2) for document in trained.documents]
    change = [after - before for before, after in zip(of_base, of_trained, strict=True)]
    draws = ratio_draws(change, sizes, f"{BENCHMARK}/{kind}/{language}")
    total = sum(sizes)
    return LanguageGain(
        kind,
        language,
        facts.category_of(kind, language),
        facts.is_trained(kind, language),
        facts.is_seen(language),
        len(sizes),
        total,
        sum(of_base) / total,
        sum(of_trained) / total,
        sum(change) / total,
        error_of(draws, len(sizes)),
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
        sum(gain.verdict == "gain" for gain in members),
        sum(gain.verdict == "loss" for gain in members),
    )
