"""The parts of a phase by a fitted law: the least that keeps the bounds, and fixed ones where no law can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.recipes.schema.guard import Replay
from emma.tools.laws.law import Law, Repetition
from emma.tools.laws.stored import StoredLaw, read_law
from emma.tools.mix.replay import parts_of
from emma.tools.mix.replay_law import parts_by_rule

ROWS: list[dict[str, Any]] = [
    {"component": "mono", "language": "eng_Latn", "category": "high", "tokens": 300},
    {"component": "mono", "language": "swh_Latn", "category": "low", "tokens": 100},
    {"component": "mono", "language": "zul_Latn", "category": "low", "tokens": 100},
    {"component": "code", "language": "python", "category": None, "tokens": 500},
    {"component": "code", "language": "nothing", "category": None, "tokens": 0},
]
LEVERS, GROUPS = (
    ["mono/high", "mono/low", "code"],
    ["category-mono-low", "component-code", "language-eng_Latn"],
)


def law(part: float = 0.5, exponent: float = 0.3) -> StoredLaw:
    """L = ℓ (1 − a + a (x / x⁰)^−γ), with each group's own lever alone."""
    parameters = np.zeros((3, 6))
    parameters[:, 0], parameters[:, 1] = 2.0, np.log(part / (1 - part))
    parameters[:, 2] = np.log(exponent / 3 / (1 - exponent / 3))
    own = np.array([1, 2, 0])
    parameters[:, 3:] = -30.0
    parameters[np.arange(3), 3 + own] = 0.0
    base = np.array([0.3, 0.2, 0.5])
    return StoredLaw(
        Law("transfer", base, own, parameters, np.zeros((3, 6, 6)), Repetition(np.ones(3), 0.0)),
        LEVERS,
        GROUPS,
    )


def write(folder: Path, stored: StoredLaw) -> Path:
    folder.mkdir(parents=True)
    (folder / "fit.json").write_text(json.dumps({"fitted": stored.to_dict()}))
    return folder / "fit.json"


def test_a_stored_law_says_the_same(tmp_path: Path) -> None:
    before, after = law(), read_law(write(tmp_path / "a", law()))
    shares = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    assert np.array_equal(before.law.predict(shares), after.law.predict(shares))
    assert (after.levers, after.groups) == (LEVERS, GROUPS)


@pytest.mark.parametrize("left", [0.25, 0.75])
def test_the_part_is_the_least_that_keeps_the_bound_by_the_laws_own_formula(
    tmp_path: Path, left: float
) -> None:
    """One group: its share of the whole run must grow by the factor that the formula's inverse says."""
    rise, bound = 0.02, 0.01
    asked = parts_by_rule({GROUPS[0]: (rise, bound)}, Replay(), ROWS, left, [write(tmp_path / "a", law())])
    wanted = (1 + bound) / (1 + rise)
    factor = (1 - (1 - wanted) / 0.5) ** (-1 / 0.3)
    # p = (1 − ρ) p⁰ + ρ ((1 − f) p⁰ + f), over p⁰ = 0.2.
    part = 0.2 * (factor - 1) / (left * (1 - 0.2))
    assert asked.parts == {GROUPS[0]: pytest.approx(part, rel=1e-6)}
    assert asked.rule.startswith("the law transfer of ") and asked.law == tmp_path / "a" / "fit.json"


def test_several_groups_keep_their_bounds_although_each_takes_from_the_others(tmp_path: Path) -> None:
    rises: dict[str, tuple[float | None, float]] = {GROUPS[0]: (0.03, 0.01), GROUPS[1]: (0.011, 0.01)}
    asked = parts_by_rule(rises, Replay(), ROWS, 0.5, [write(tmp_path / "a", law())])
    low, code = (asked.parts[name] for name in rises)
    rest = 1 - low - code
    shares = 0.5 * np.array([0.3, 0.2, 0.5]) + 0.5 * np.array(
        [0.3 * rest, 0.2 * rest + low, 0.5 * rest + code]
    )
    found = law().law.predict(np.stack([law().law.base, shares]))
    for place, (rise, bound) in enumerate(rises.values()):
        assert found[1, place] / found[0, place] == pytest.approx(
            (1 + bound) / (1 + float(rise or 0)), abs=1e-6
        )


def test_more_than_most_is_said_and_kept_to(tmp_path: Path) -> None:
    file = write(tmp_path / "a", law(part=0.05))
    asked = parts_by_rule({GROUPS[0]: (0.5, 0.01)}, Replay(most=0.4), ROWS, 0.5, [file])
    assert asked.parts == {GROUPS[0]: pytest.approx(0.4)} and "no parts up to replay.most (0.4)" in asked.rule


def test_where_no_law_can_say_the_parts_are_fixed_and_the_reason_is_told(tmp_path: Path) -> None:
    file, other = write(tmp_path / "a", law()), write(tmp_path / "b", law())
    broken = tmp_path / "broken.json"
    broken.write_text('{"law": "transfer"}')
    rises: dict[str, tuple[float | None, float]] = {GROUPS[0]: (0.03, 0.01)}

    def rule(
        laws: list[Path],
        rises: dict[str, tuple[float | None, float]] = rises,
        rows: list[dict[str, Any]] = ROWS,
    ) -> str:
        asked = parts_by_rule(rises, Replay(), rows, 0.5, laws)
        assert asked.parts == parts_of(rises, Replay()) and asked.law is None
        return asked.rule

    assert rule([]) == "fixed parts: the run has no fitted law"
    assert "several laws" in rule([file, other]) and str(other) in rule([file, other])
    assert "does not speak of language-swh_Latn" in rule([file], {"language-swh_Latn": (0.03, 0.01)})
    assert "not finite" in rule([file], {GROUPS[0]: (None, 0.01)})
    assert "other shares" in rule([file], rows=ROWS[:3])
    assert "holds no fitted law" in rule([broken])
    named = parts_by_rule(rises, Replay(law=str(other)), ROWS, 0.5, [file, other])
    assert named.law == other
    with pytest.raises(UserError, match="holds no fitted law"):
        parts_by_rule(rises, Replay(law=str(broken)), ROWS, 0.5, [])
