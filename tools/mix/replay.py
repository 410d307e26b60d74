"""The mix of a phase that replays: the rest of a run's budget, over documents that it has not consumed, with more text of
the groups that were forgotten.

Rule, after Ibrahim et al. 2024 (arXiv 2403.08763), who replay 5 % of the old text for a weak and 25 % for a strong shift:
of the phase's tokens, each forgotten group g gets a part f_g beyond what it has anyway,

    share'_s = (1 − Σ f_g) share_s + Σ_{g ∋ s} f_g share_s / Σ_{r ∈ g} share_r

for each source s (a language or pair of a component), with the shares of the mix that the run has. If Σ f_g is above
`most`, all f_g shrink by one factor. The shares are written as keys of a recipe: a `share` a component and a `factor_of`
a source, which makes the planned tokens those of the formula. Caps stay; what a source cannot give within them, since too
little of it is unread, the others of its component give, as in any mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.recipes.schema.data import Consumed, Mix
from emma.recipes.schema.guard import Replay
from emma.tools.mix.layout import read_dataset_info, read_mix
from emma.tools.mix.plan import weight_of
from emma.tools.mix.prepare import MixSettings, prepare
from emma.tools.mix.sources import Source

__all__ = ["ReplayedSource", "Replayed", "members", "parts_of", "replay_shares", "replayed_mix", "row_key"]

# A source that the run planned no token of keeps (nearly) none; a weight must be above 0.
_NEXT_TO_NOTHING = 1e-15


@dataclass(frozen=True)
class ReplayedSource:
    """One source in the phase: its shares of the mix before and as asked for now, the tokens that the run planned of it and
    held, and those that the phase plans."""

    component: str
    language: str
    before: float
    share: float
    store_tokens: int
    unread_tokens: int
    tokens: int
    consumed_tokens: int

    @property
    def epochs(self) -> float:
        """Passes over the source, by the run and the phase together."""
        return (self.consumed_tokens + self.tokens) / self.store_tokens if self.store_tokens else 0.0


@dataclass(frozen=True)
class Replayed:
    """The numbers of a phase's mix.

    Attributes:
        consumed_samples: of the run's mix.
        samples: of the phase's.
        parts: of the phase's tokens, what each forgotten group gets beyond its share.
        sources: all of the mix.
        short: sources that give less than asked for, because of their caps or because too little is unread.
        notes: of the plan.
        rule: how the parts were found, in words.
    """

    consumed_samples: int
    samples: int
    parts: dict[str, float]
    sources: list[ReplayedSource]
    short: list[str]
    notes: list[str]
    rule: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For `guard.json`: all numbers, the sources only where replayed or short; every source is in the mix's plan."""
        told = [
            {**asdict(source), "epochs": source.epochs}
            for source in self.sources
            if source.share > source.before * (1 + 1e-9)
            or f"{source.component}/{source.language}" in self.short
        ]
        return {**asdict(self), "sources": told}


def members(group: str, component: str, language: str, category: str | None) -> bool:
    """Whether a source belongs to a validation group, by the names that `plan_validation` gives."""
    return group in (f"component-{component}", f"category-{component}-{category}", f"language-{language}")


def parts_of(rises: Mapping[str, tuple[float | None, float]], replay: Replay) -> dict[str, float]:
    """The part of a phase that each forgotten group gets beyond its share.

    Args:
        rises: relative rise (None: not finite) and bound, by group.
        replay: the recipe's `guard.replay`.
    """
    parts = {}
    for name, (rise, bound) in rises.items():
        strong = rise is None or rise >= replay.strong_from * bound
        parts[name] = replay.strong if strong else replay.weak
    total = sum(parts.values())
    return {name: part * min(1.0, replay.most / total) for name, part in parts.items()}


def replay_shares(
    rows: list[dict[str, Any]], parts: Mapping[str, float]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """Shares of the sources before and after; both sum to 1.

    Args:
        rows: of the run's `plan.parquet`.
        parts: by group.

    Raises:
        UserError: a group has no source in the mix.
    """
    total = sum(row["tokens"] for row in rows)
    before = {row_key(row): row["tokens"] / total for row in rows}
    after = {key: (1 - sum(parts.values())) * share for key, share in before.items()}
    for name, part in parts.items():
        inside = [
            row_key(row) for row in rows if members(name, row["component"], row["language"], row["category"])
        ]
        weight = sum(before[key] for key in inside)
        if not weight:
            raise UserError(f"{name}: the mix reads no text of this group, so there is none to replay")
        for key in inside:
            after[key] += part * before[key] / weight
    return before, after


def replayed_mix(
    settings: MixSettings, mix: Path, samples: int, parts: Mapping[str, float], *, again: bool
) -> tuple[Mix, Replayed]:
    """The phase's `data.mix`, planned from the store.

    Args:
        settings: the phase's, but with the run's `data.mix`: its `samples` are the rest of the budget.
        mix: folder of the run's mix.
        samples: samples of it that were consumed.
        parts: by group (`parts_of`).
        again: documents that were consumed may be read again, within what is left of their sources' caps; otherwise they
            are left out.

    Raises:
        UserError: a forgotten group has no text in the mix, or a component no unread document.
        CheckFailedError: what is left of the store does not fill the budget.
    """
    rows = pq.read_table(mix / "plan.parquet").to_pylist()
    before, after = replay_shares(rows, parts)
    consumed = _consumed_tokens(mix, samples)
    base = settings.mix.model_copy(update={"allow_short": True})
    if again:
        base = _with_caps(
            base, {row_key(row): _left(row, consumed) / max(row["store_tokens"], 1) for row in rows}
        )
    else:
        entry = Consumed(mix=str(mix), samples=samples)
        base = base.model_copy(update={"exclude_consumed": [*base.exclude_consumed, entry]})
        # A cap counts passes over what a source holds. Of at least one, it allows as many over what is unread; of less, it
        # allows what is left of it.
        held = {source.key: source.tokens for source in prepare(replace(settings, mix=base)).sources}
        base = _with_caps(
            base,
            {
                row_key(row): _left(row, consumed) / max(held[row_key(row)], 1)
                for row in rows
                if row["max_epochs"] < 1
            },
        )
    # Weights are of what is unread, so the factors that lead to a share depend on it.
    unread = {source.key: source for source in prepare(replace(settings, mix=base)).sources}
    components = {}
    for name, component in base.components.items():
        mine = {key: share for key, share in after.items() if key[0] == name}
        weights = {
            key: max(share, _NEXT_TO_NOTHING) / (weight_of(base, unread[key]) / _factor(base, unread[key]))
            for key, share in mine.items()
        }
        largest = max(weights.values())
        components[name] = component.model_copy(
            update={
                "share": 100 * sum(mine.values()),
                "factor_of": {language: weight / largest for (_, language), weight in weights.items()},
            }
        )
    made = base.model_copy(update={"components": components})
    plan = prepare(replace(settings, mix=made)).plan
    plan.check()
    planned = {row.source.key: row.target_tokens for row in plan.sources}
    store = {row_key(row): row["store_tokens"] for row in rows}
    sources = [
        ReplayedSource(
            *key,
            before[key],
            share,
            store[key],
            unread[key].tokens,
            planned[key],
            consumed.get(key, 0),
        )
        for key, share in after.items()
    ]
    # (Tokens are whole: less than one is no shortfall.)
    short = [
        f"{source.component}/{source.language}"
        for source in sources
        if source.tokens < source.share * plan.tokens - 1.5
    ]
    return made, Replayed(samples, settings.samples, dict(parts), sources, short, list(plan.notes))


def row_key(row: Mapping[str, Any]) -> tuple[str, str]:
    """Component and language of a row of `plan.parquet`."""
    return row["component"], row["language"]


def _left(row: Mapping[str, Any], consumed: Mapping[tuple[str, str], int]) -> float:
    """Tokens that a source may still give within its cap."""
    return float(row["max_epochs"] * row["store_tokens"] - consumed.get(row_key(row), 0))


def _with_caps(mix: Mix, caps: Mapping[tuple[str, str], float]) -> Mix:
    """The mix with other caps for some sources, in passes over what they hold; none is 0 in a recipe."""
    components = {
        name: component.model_copy(
            update={
                "max_epochs_of": component.max_epochs_of
                | {key[1]: max(cap, _NEXT_TO_NOTHING) for key, cap in caps.items() if key[0] == name}
            }
        )
        for name, component in mix.components.items()
    }
    return mix.model_copy(update={"components": components})


def _factor(mix: Mix, source: Source) -> float:
    return mix.components[source.component].factor_of.get(source.language, 1.0)


def _consumed_tokens(mix: Path, samples: int) -> dict[tuple[str, str], int]:
    """Tokens of the documents that the first samples of a mix hold any part of, each as often as it was read."""
    import numpy as np

    info = read_dataset_info(read_mix(mix).train)
    row, into = np.load(info.folder / "samples.npy", mmap_mode="r")[samples].tolist()
    rows = np.load(info.folder / "rows.npy", mmap_mode="r")[: row + (1 if into else 0)]
    totals = np.bincount(rows["source"], rows["tokens"], len(info.sources)).astype(np.int64).tolist()
    return {
        (source.component, source.language): total for source, total in zip(info.sources, totals, strict=True)
    }
