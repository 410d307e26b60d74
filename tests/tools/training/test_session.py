"""The parts of a session against Megatron's real loop: which seam each answers, in which order, and what is
refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.tools.runs.heartbeat import Heartbeat
from emma.tools.runs.run_folder import RunFolder
from tests.ranks import RanksError, run_ranks
from tests.small_recipe import small_recipe

TABLE = Path(__file__).parents[3] / "tools/training/session/session.py"


def answered(folder: str) -> tuple[dict[str, list[str]], list[str]]:
    """In a rank: names of the parts at each seam, and methods written as answers to something that is not
    a seam."""
    from emma.recipes.load import load_recipe
    from emma.tools.mix.layout import MixInfo
    from emma.tools.training.session.session import SEAMS, Session, answers

    run, recipe = RunFolder(folder), load_recipe(folder)
    mix: Any = object.__new__(MixInfo)  # only kept while the parts are made
    session = Session(recipe, run, run.own_launch(), mix, Heartbeat(Path(folder), writes=False))
    seams = {seam: [type(part).__name__ for part in answers(session.parts, seam)] for seam in SEAMS}
    strays = [
        f"{type(part).__name__}.{name}"
        for part in session.parts
        for name, method in inspect.getmembers(part, inspect.ismethod)
        if "original" in inspect.signature(method).parameters and name not in SEAMS
    ]
    session.install()
    return seams, strays


def test_the_documented_table_is_the_order_of_the_parts(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe)
    ((seams, strays),) = run_ranks(answered, 1, str(run.path), env=launch.environment)
    rows = re.findall(r"^\| `(\w+)` +\| (.+?) +\|$", TABLE.read_text(), re.MULTILINE)
    assert seams == {seam: re.findall(r"`(\w+)`", parts) for seam, parts in rows}
    assert not strays


class Outer:
    """A part that notes when it begins and ends."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def save_checkpoint_and_time(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        self.calls.append(f"{self.name} begins")
        result = original(*values, **named)
        self.calls.append(f"{self.name} ends")
        return result


def nested() -> tuple[list[str], str]:
    """In a rank: calls at a seam with two parts, and the name that the loop sees there."""
    from megatron.training import training

    from emma.tools.training.session.session import install

    calls: list[str] = []

    def save_checkpoint_and_time(iteration: int, model: Any) -> str:
        calls.append(f"saves {iteration}")
        return "saved"

    training.save_checkpoint_and_time = save_checkpoint_and_time
    install([Outer("first", calls), Outer("second", calls)])
    assert training.save_checkpoint_and_time(5, model=None) == "saved"
    return calls, training.save_checkpoint_and_time.__name__


def test_the_first_part_is_outermost() -> None:
    ((calls, name),) = run_ranks(nested, 1)
    assert calls == ["first begins", "second begins", "saves 5", "second ends", "first ends"]
    assert name == "save_checkpoint_and_time"


def another_loop(seam: str) -> None:
    """In a rank: a Megatron whose seam has other parameters."""
    from megatron.training import training

    from emma.tools.training.session.session import install

    def changed(state: Any, *rest: Any) -> None:
        raise NotImplementedError

    setattr(training, seam, changed)
    install([])


@pytest.mark.parametrize("seam", ["training_log", "maybe_finalize_async_save"])
def test_another_loop_is_refused(seam: str) -> None:
    with pytest.raises(
        RanksError, match=rf"training\.{seam}\('state', 'rest'\) is not the function of megatron"
    ):
        run_ranks(another_loop, 1, seam)
