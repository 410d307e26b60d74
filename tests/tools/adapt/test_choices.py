"""The arithmetic of a budget."""

from __future__ import annotations

import pytest

from emma.base.errors import UserError
from emma.recipes.load import load_recipe
from emma.tools.adapt.choices import Choices, budget_of, choose_schedule, parts_of, solve
from emma.tools.mix.sources import Source


@pytest.mark.parametrize(("own", "kept", "pairs"), [(1000, 0, 0), (1000, 5000, 300), (1000, 20, 9000)])
@pytest.mark.parametrize("epochs", [0.3, 1, 4])
def test_parts_make_up_the_budget(own: int, kept: int, pairs: int, epochs: float) -> None:
    parts = budget_of(epochs, own, kept, pairs)
    assert parts.epochs == pytest.approx(epochs)
    assert parts.own == pytest.approx(epochs * own)
    assert parts.kept <= 4 * kept + 1e-6
    assert parts.kept <= 0.2 * parts.total + 1e-6
    assert parts.pairs <= parts.total / 3 + 1e-6
    assert parts.pairs <= epochs * pairs + 1e-6
    again = parts_of(parts.total, own, kept, pairs)
    assert again.epochs == pytest.approx(epochs)


def source(language: str, tokens: int, component: str = "monolingual") -> Source:
    return Source(component, language, None, tokens // 2, max(1, tokens // 100), tokens)


def solved(*sources: Source, lower: bool = False, cap: float = 4.0, **budget: float) -> Choices:
    return solve(
        sources,
        ["eng_Latn"],
        load_recipe("demo"),
        unit=4,
        length=256,
        cap=cap,
        epochs=budget.get("epochs"),
        tokens=budget.get("tokens"),
        languages=[one.language for one in sources if one.component == "monolingual"],
        validation_tokens=1000,
        lower=lower,
    )


def test_english_gets_a_fifth_however_much_there_is() -> None:
    choices = solved(source("swh_Latn", 200_000), source("eng_Latn", 10**9), epochs=2)
    english = next(row for row in choices.plan.sources if row.source.language == "eng_Latn")
    assert english.target_tokens == pytest.approx(0.2 * choices.parts.total, rel=0.05)
    assert not choices.plan.faults


@pytest.mark.parametrize("epochs", [1.0, 3.9, 4.0])
def test_a_plan_at_the_caps_has_no_faults(epochs: float) -> None:
    sources = [source(f"aa{letter}_Latn", 10_007 + 977 * n) for n, letter in enumerate("abcdefgh")]
    choices = solved(*sources, source("aaa_Latn-aab_Latn", 33_333, "bilingual"), epochs=epochs)
    assert not choices.plan.faults
    assert choices.plan.planned_tokens == choices.schedule.steps * choices.schedule.batch * 256


def test_a_budget_beyond_the_caps_is_refused_or_lowered() -> None:
    sources = [source("swh_Latn", 100_000)]
    with pytest.raises(UserError, match=r"10\.0 epochs .* --tokens 400000, or pass --max-epochs 10"):
        solved(*sources, tokens=1_000_000)
    choices = solved(*sources, tokens=1_000_000, lower=True)
    assert choices.lowered == 1_000_000
    assert choices.parts.total <= 400_000
    assert solved(*sources, tokens=1_000_000, cap=10).lowered is None


def test_a_budget_below_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="less than a step"):
        solved(source("swh_Latn", 500), epochs=1)


def test_pairs_alone_are_refused() -> None:
    with pytest.raises(UserError, match="only pairs"):
        solved(source("eng_Latn-swh_Latn", 5000, "bilingual"), source("eng_Latn", 5000), epochs=1)


@pytest.mark.parametrize(
    ("tokens", "batch", "scaled"),
    [(671e9, 2048, 2048), (4e9, 256, 256), (150e6, 128, 128), (20e6, 16, 128), (9000, 1, 128)],
)
def test_small_budgets_take_small_batches(tokens: float, batch: int, scaled: int) -> None:
    parent = load_recipe("emma_llama3_8b_bi")
    found = choose_schedule(tokens, parent, 1, 8192)
    assert (found.batch, found.steps) == (batch, int(tokens // (batch * 8192)))
    assert found.rate == pytest.approx(4e-5 * (scaled / 2048) ** 0.5, rel=0.05)
