"""Budget, shares, caps and schedule of a first run, from what the text holds. Every number has its reason beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.recipes.schema.data import Mix
from emma.tools.mix.plan import MixPlan, make_plan
from emma.tools.mix.sources import Source

__all__ = ["Choices", "Parts", "Schedule", "budget_of", "choose_schedule", "mix_of", "parts_of", "solve"]

KEEP_SHARE = 0.2
"""Most of the budget that goes to languages to keep. Ibrahim et al. 2024 (arXiv 2403.08763): replay of 5 % for a weak
shift of the data, 25 % for a strong one."""
PAIR_SHARE = 1 / 3
"""Most of the budget that goes to translations: Mix 1 of the papers has 32.3 %."""
TEMPERATURE = 3.3
"""Sources weigh tokens^(1/T): mT5's exponent 0.3 (Xue et al. 2021, arXiv 2010.11934)."""
KEPT_EPOCHS = 4
"""Most epochs over text of languages to keep."""
_STEPS, _LEAST_STEPS = 1000, 100
"""Fewer steps than the first, and the batch is halved, to no less than `_LEAST_BATCH`; with fewer than the second, to less."""
_LEAST_BATCH = 128
_SLACK = 1.02
"""How far above its part the cap of a language to keep lies, so that rounding to documents has room."""


@dataclass(frozen=True)
class Parts:
    """How a budget divides, in tokens.

    Attributes:
        own: monolingual text of the languages to adapt to.
        kept: monolingual text of the languages to keep.
        pairs: translations.
        epochs: over the languages' own text, on average; for pairs at most as many.
    """

    own: float
    kept: float
    pairs: float
    epochs: float

    @property
    def total(self) -> float:
        """The budget."""
        return self.own + self.kept + self.pairs


@dataclass(frozen=True)
class Schedule:
    """What a run's batch and schedule become.

    Attributes:
        steps, batch, warmup, save, validate: steps, sequences a step, and steps between saves and validations.
        rate: peak learning rate.
        scaled: batch that it was scaled to.
        halved: how often the parent's batch was halved.
    """

    steps: int
    batch: int
    warmup: int
    save: int
    validate: int
    rate: float
    scaled: int
    halved: int


@dataclass(frozen=True)
class Choices:
    """A solved budget.

    Attributes:
        parts: how the budget divides.
        mix: the `data.mix` section.
        plan: the mix, solved by the mix's own arithmetic.
        schedule: batch and steps.
        lowered: what the budget was lowered from, in tokens, because the text at its caps holds no more; None if it wasn't.
    """

    parts: Parts
    mix: Mix
    plan: MixPlan
    schedule: Schedule
    lowered: float | None = None


def parts_of(budget: float, own: int, kept: int, pairs: int) -> Parts:
    """Divides a budget over text of so many tokens.

    Args:
        budget: tokens of training.
        own, kept, pairs: tokens of the languages' own text, of text to keep, and of pairs.
    """
    replay = min(KEEP_SHARE * budget, KEPT_EPOCHS * kept)
    rest = budget - replay
    translations = min(PAIR_SHARE * budget, rest * pairs / (own + pairs)) if pairs else 0.0
    return Parts(rest - translations, replay, translations, (rest - translations) / own)


def budget_of(epochs: float, own: int, kept: int, pairs: int) -> Parts:
    """The budget at which the languages' own text is read so many times on average."""
    low, high = 0.0, 1.0
    while parts_of(high, own, kept, pairs).epochs < epochs:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if parts_of(middle, own, kept, pairs).epochs <= epochs:
            low = middle
        else:
            high = middle
    return parts_of(low, own, kept, pairs)


def mix_of(
    parts: Parts,
    kept: Mapping[str, int],
    cap: float,
    languages: Sequence[str],
    validation_tokens: int,
) -> Mix:
    """The `data.mix` section.

    Args:
        parts: how the budget divides.
        kept: tokens of each language to keep.
        cap: most epochs over a language or pair.
        languages: those with a validation group of their own.
        validation_tokens: most tokens of a group.
    """
    share = round(100 * parts.pairs / parts.total, 1)
    if parts.epochs > 0.95 * cap:
        # All would be at their caps to the token, where rounding to whole documents has no room.
        cap = round(1.05 * cap, 3)
    total = sum(kept.values())
    keep = {code: _SLACK * parts.kept / total for code in kept} if total else {}
    components = {
        "monolingual": {
            "share": round(100 - share, 1),
            "temperature": TEMPERATURE,
            "max_epochs": float(cap),
            "max_epochs_of": {code: _upwards(epochs) for code, epochs in keep.items()},
        }
    }
    if share:
        components["bilingual"] = {"share": share, "temperature": TEMPERATURE, "max_epochs": float(cap)}
    validation = {
        "languages": list(languages),
        "max_tokens": validation_tokens,
        "min_tokens": 200,
        "omit_small": True,
    }
    # A component that its caps leave a little short of its share is made up for by the other.
    return Mix.model_validate({"components": components, "validation": validation, "allow_short": True})


def _upwards(value: float) -> float:
    """The next number of three digits."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / scale) * scale:.3g}")


def choose_schedule(budget: float, parent: Recipe, unit: int, length: int) -> Schedule:
    """Batch and schedule for a budget.

    The parent's batch is halved until there are a thousand steps, or at 128 sequences a hundred. The learning rate follows by
    the square root of the batch, down to 128 sequences: further down the rule is not known to hold.

    Args:
        budget: tokens.
        parent: the shipped run whose batch and learning rate are the starting point.
        unit: the batch is a multiple of this: micro-batch × data-parallel size.
        length: tokens of a sequence.

    Raises:
        UserError: the budget makes no step.
    """
    batch, halved = parent.batch.global_, 0
    while batch >= 2 * unit and (
        budget / (batch * length) < (_STEPS if batch > _LEAST_BATCH else _LEAST_STEPS)
    ):
        batch, halved = batch // 2, halved + 1
    batch = max(unit, batch // unit * unit)
    steps = int(budget // (batch * length))
    if steps < 1:
        raise UserError(
            f"the budget of {budget:,.0f} tokens is less than a step of {batch} × {length:,} tokens. Fix: add text, raise "
            "--epochs, --tokens or --gpu-hours, or take fewer GPUs"
        )
    scaled = max(batch, min(_LEAST_BATCH, parent.batch.global_))
    rate = parent.schedule.learning_rate * math.sqrt(scaled / parent.batch.global_)
    return Schedule(
        steps,
        batch,
        max(1, round(0.05 * steps)) if steps > 1 else 0,
        max(1, min(parent.checkpoint.interval, -(-steps // 5))),
        max(1, -(-steps // 10)),
        float(f"{rate:.2g}"),
        scaled,
        halved,
    )


def solve(
    sources: Sequence[Source],
    kept: Sequence[str],
    parent: Recipe,
    *,
    unit: int,
    length: int,
    cap: float,
    epochs: float | None,
    tokens: float | None,
    languages: Sequence[str],
    validation_tokens: int,
    lower: bool,
) -> Choices:
    """Budget, mix and schedule, held against the mix's own plan.

    Args:
        sources: text of the components `monolingual` and `bilingual`.
        kept: codes of the languages to keep.
        parent: the shipped run that this one follows.
        unit, length, languages, validation_tokens: as above.
        cap: most epochs over a language.
        epochs: of the languages' own text, if that is the budget.
        tokens: the budget else.
        lower: a budget that the text doesn't hold is lowered, instead of refused.

    Raises:
        UserError: the text at its caps doesn't hold the budget.
    """
    own = sum(s.tokens for s in sources if s.component == "monolingual" and s.language not in kept)
    keep = {
        s.language: s.tokens
        for s in sources
        if s.component == "monolingual" and s.language in kept and s.tokens
    }
    pairs = sum(s.tokens for s in sources if s.component == "bilingual")
    if not own:
        raise UserError(
            "none of the languages has text of its own, only pairs. Fix: add monolingual text of at least one (--text)"
        )
    replay = sum(keep.values())
    parts = (
        budget_of(epochs, own, replay, pairs)
        if epochs is not None
        else parts_of(tokens or 0, own, replay, pairs)
    )
    asked, lowered = parts, None
    if parts.epochs > cap * (1 + 1e-9):
        most = budget_of(cap, own, replay, pairs)
        if not lower:
            raise UserError(
                f"the budget of {parts.total:,.0f} tokens is {parts.epochs:,.1f} epochs of the languages' own text "
                f"({own:,} tokens), and {cap:g} is the most: more repetition is worth little (arXiv 2305.16264). Fix: add "
                f"text, lower the budget to --tokens {most.total:.0f}, or pass --max-epochs {math.ceil(parts.epochs)}"
            )
        parts, lowered = most, asked.total
    schedule = choose_schedule(parts.total, parent, unit, length)
    parts = parts_of(schedule.steps * schedule.batch * length, own, replay, pairs)
    mix = mix_of(parts, keep, cap, languages, validation_tokens)
    here = [s for s in sources if s.component in mix.components and s.tokens]
    plan = make_plan(mix, here, round(parts.total), length)
    if plan.faults:
        raise UserError("\n".join(plan.faults))
    return Choices(parts, mix, plan, schedule, lowered)
