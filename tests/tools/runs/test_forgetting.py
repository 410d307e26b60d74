"""Whether a group was forgotten: the test's error rates over whole runs, its power, and what it says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from emma.tools.runs.forgetting import Look, excess, level_of, look_at

RUNS = 400


def texts(runs: int, documents: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """The base's loss of documents whose lengths are log-normal, as those of web text are."""
    lengths = rng.lognormal(5.5, spread, (runs, documents))
    return lengths * rng.lognormal(0.7, 0.3, (runs, documents))


def changes(
    kind: str, before: np.ndarray | None, shape: tuple[int, ...], looks: int, rng: np.random.Generator
) -> np.ndarray:
    """By which part the loss of each document has changed at a look; 0 on average."""
    if kind == "other each time":  # as independent as looks can be: what the union bound is paid for
        return rng.normal(0, 0.02, shape)
    if kind == "wanders":  # from look to look, as training does
        step = rng.normal(0, 0.02 / looks**0.5, shape)
        return step if before is None else before + step
    if kind == "few gain much":  # skewed to the left, and lasting
        return before if before is not None else 0.01 - rng.exponential(0.01, shape)
    raise AssertionError(kind)


def false_alarms(
    kind: str, documents: int, spread: float, looks: int, *, groups: int = 1, bound: float = 0.01
) -> float:
    """Share of runs in which any look finds a group above its bound, where its true rise is the bound at all looks."""
    rng = np.random.default_rng([documents, looks, groups])
    alarmed = np.zeros(RUNS, bool)
    for _ in range(groups):
        base, state = texts(RUNS, documents, spread, rng), None
        for look in range(1, looks + 1):
            state = changes(kind, state, base.shape, looks, rng)
            level = level_of(10 * look, 10 * (look - 1), 10 * looks, groups, 0.05)
            alarmed |= excess(base, base * (1 + bound + state), bound, level) > 0
    return float(alarmed.mean())


# Twice the standard error of a share of 5 % in so many runs above it.
LIMIT = 0.05 + 2 * (0.05 * 0.95 / RUNS) ** 0.5


@pytest.mark.parametrize("kind", ["other each time", "wanders", "few gain much"])
@pytest.mark.parametrize(("documents", "spread"), [(20, 0.5), (60, 1.0), (300, 1.5)])
def test_at_most_5_percent_of_runs_are_alarmed_in_vain(kind: str, documents: int, spread: float) -> None:
    """At the bound itself, the worst that is still allowed; a run that forgets nothing is further away."""
    assert false_alarms(kind, documents, spread, looks=30) <= LIMIT


def test_nor_with_two_groups_or_many_looks() -> None:
    assert false_alarms("other each time", 100, 1.0, looks=30, groups=2) <= LIMIT
    assert false_alarms("wanders", 100, 1.0, looks=120) <= LIMIT


def test_looking_often_at_a_fixed_level_would_raise_them() -> None:
    """What the spending is for: at 5 % each, most runs would be alarmed."""
    rng = np.random.default_rng(0)
    base, alarmed = texts(RUNS, 100, 1.0, rng), np.zeros(RUNS, bool)
    for _ in range(30):
        state = changes("other each time", None, base.shape, 30, rng)
        alarmed |= excess(base, base * (1.01 + state), 0.01, 0.05) > 0
    assert alarmed.mean() > 0.5


def test_a_run_that_forgets_nothing_is_hardly_ever_alarmed() -> None:
    rng = np.random.default_rng(3)
    base, state, alarmed = texts(RUNS, 60, 1.0, rng), None, 0
    for look in range(1, 31):
        state = changes("wanders", state, base.shape, 30, rng)
        alarmed += int(
            (excess(base, base * (1 + state), 0.01, level_of(look, look - 1, 30, 1, 0.05)) > 0).sum()
        )
    assert alarmed <= RUNS * 0.005


def test_what_was_forgotten_is_found_at_once() -> None:
    """Three percent where one is allowed, in 100 documents: nine of ten single looks out of forty find it."""
    rng = np.random.default_rng(1)
    base = texts(RUNS, 100, 1.0, rng)
    found = excess(base, base * (1.03 + rng.normal(0, 0.02, base.shape)), 0.01, 0.05 / 40) > 0
    assert found.mean() > 0.9


def test_the_levels_of_a_run_add_up_however_it_looks() -> None:
    for steps in ([10, 20, 100], range(1, 101), [3, 4, 50, 99, 100]):
        looked = [0, *steps]
        levels = [level_of(step, before, 100, 2, 0.05) for before, step in itertools.pairwise(looked)]
        assert 2 * sum(levels) == pytest.approx(0.05)


def look(now: np.ndarray, base: np.ndarray, bound: float = 0.01, level: float = 0.001) -> Look:
    return look_at(7, "language-eng_Latn", bound, base, now, level)


def test_a_look_says_what_it_rests_on() -> None:
    rng = np.random.default_rng(5)
    base = texts(1, 200, 1.0, rng)[0]
    now = base * (1.03 + rng.normal(0, 0.02, 200))
    found = look(now, base)
    assert found.rise == pytest.approx(now.sum() / base.sum() - 1)
    assert found.forgotten and found.at_least is not None and 0.01 < found.at_least < found.rise
    # The limit is where the same test turns.
    assert (
        excess(base, now, found.at_least - 1e-6, 0.001) > 0 > excess(base, now, found.at_least + 1e-6, 0.001)
    )
    # Against a direct simulation of which documents were drawn.
    drawn = rng.integers(0, 200, (4000, 200))
    assert found.error == pytest.approx((now[drawn].sum(1) / base[drawn].sum(1)).std(), rel=0.1)
    quiet = look(now, base, bound=0.029)
    assert not quiet.forgotten and quiet.at_least == pytest.approx(found.at_least)
    assert "+3" in str(found) or "+2.9" in str(found)


def test_bytes_per_token_cancel() -> None:
    rng = np.random.default_rng(6)
    base = texts(1, 50, 1.0, rng)[0]
    now = base * (1.02 + rng.normal(0, 0.01, 50))
    one, other = look(now, base), look(now / 3.7, base / 3.7)
    assert one.rise == pytest.approx(other.rise) and one.at_least == pytest.approx(other.at_least)


def test_a_loss_that_is_not_finite_is_forgetting() -> None:
    base = texts(1, 50, 1.0, np.random.default_rng(7))[0]
    now = base.copy()
    now[3] = np.nan
    found = look(now, base)
    assert found.forgotten and found.rise is None and "not finite" in str(found)


def test_no_change_at_all_is_none_and_a_change_of_all_alike_is_certain() -> None:
    base = np.full(30, 100.0)
    assert not look(base, base, bound=0.0).forgotten
    assert look(base * 1.5, base, bound=0.01).forgotten
    assert not look(base * 1.5, base, bound=0.01, level=0.0).forgotten  # step 0 of a phase


def test_one_long_document_does_not_decide() -> None:
    """It outweighs all others, so nobody can say whether more such documents would have risen."""
    rng = np.random.default_rng(8)
    base = rng.uniform(90, 110, 40)
    now = base * (1 + rng.normal(0, 0.001, 40))
    base[0], now[0] = 1e5, 1.2e5
    found = look(now, base)
    assert found.rise is not None and found.rise > 0.15 and not found.forgotten
