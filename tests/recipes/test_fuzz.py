"""Recipes that nobody would write: each is refused with one message, or accepted within the bounds, and soon."""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from emma.base.errors import UserError
from emma.recipes.compose import parse_override
from emma.recipes.load import dump_yaml, load_recipe
from emma.recipes.reading import read_yaml
from emma.recipes.schema import Recipe
from emma.tools.plan.plan import make_plan

SLOWEST = 2.0
"""Seconds of processor time that any answer may take."""

RUNS = ["demo", "emma_llama3_8b_bi"]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Garbage collections look at what these tests make, and not at all that other tests have left in this process."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.sampled_from(
        [0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**18, 10**400, 1e300, -1e300, 5e-324, math.inf, math.nan]
    ),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "a\nb", "a\x00b", "\x1b[31m", "\u2028", "$(reboot)", "`id`", "';--", "../..", "/", "%s{}"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
configured = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a recipe has values: every key and every item."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def judge(run: str, overrides: list[str]) -> None:
    """Loads and plans a recipe: it works, or there is one message."""

    def answer() -> None:
        try:
            recipe = load_recipe(run, overrides)
            within_bounds(recipe)
            make_plan(recipe)
        except UserError as error:
            assert str(error) and "Traceback" not in str(error)

    answers_at_once(answer)


def answers_at_once(answer: Callable[[], None]) -> None:
    """Fails if `answer` takes more than SLOWEST processor-seconds each of three times: a core whose other half, or
    whose machine, works for somebody else may stretch one of them by any factor. One that takes ten times as long is
    ended, before it has taken all memory too."""

    def end(*_: object) -> None:
        pytest.fail(f"no answer within {10 * SLOWEST} processor-seconds")

    took = []
    before = signal.signal(signal.SIGVTALRM, end)
    try:
        while len(took) < 3:
            begun = time.process_time()
            signal.setitimer(signal.ITIMER_VIRTUAL, 10 * SLOWEST)
            answer()
            took.append(time.process_time() - begun)
            if took[-1] < SLOWEST:
                return
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    raise AssertionError(f"three answers took {took} processor-seconds, allowed are {SLOWEST}")


def within_bounds(recipe: Recipe) -> None:
    """What no accepted recipe has."""
    plain = recipe.to_dict()
    for place in places(plain):
        value: Any = plain
        for key in place:
            value = value[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert math.isfinite(value) and abs(value) <= 2**53, place
        if (
            isinstance(value, str)
            and "template" not in str(place[-1])
            and place[-1] not in ("description", "header")
        ):
            assert "\n" not in value and "\x00" not in value, place


@functools.cache
def keys(run: str) -> list[str]:
    """Dotted keys of a run that an override can reach."""
    found = [
        place for place in places(load_recipe(run).to_dict()) if all(isinstance(key, str) for key in place)
    ]
    return [".".join(place) for place in found if not any("." in key or "=" in key for key in place)]


def draw_overrides(data: st.DataObject) -> tuple[str, list[str]]:
    """A run, and one or two of its keys with values that they were not made for."""
    run = data.draw(st.sampled_from(RUNS))
    drawn = [
        (data.draw(st.sampled_from(keys(run))), data.draw(values))
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    # JSON is YAML, but for its words for what is no number.
    return run, [
        f"{key}={json.dumps(value).replace('NaN', '.nan').replace('Infinity', '.inf')}"
        for key, value in drawn
    ]


@settings(configured, max_examples=200)
@given(data=st.data())
def test_mutated_recipes(data: st.DataObject) -> None:
    judge(*draw_overrides(data))


@pytest.mark.slow
@settings(configured, max_examples=5000)
@given(data=st.data())
def test_five_thousand_mutated_recipes(data: st.DataObject) -> None:
    judge(*draw_overrides(data))


ALPHABET = st.sampled_from(
    [
        *"&*a:!|>-?[]{},#%@`\"'\n\t \\01e.<~",
        "<<: ",
        "&a ",
        "*a",
        "- ",
        ": ",
        "!!binary ",
        "!!float ",
        "2026-02-30",
    ]
)


def read(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    def answer() -> None:
        try:
            read_yaml(path)
        except UserError as error:
            assert str(error)
        try:
            parse_override(f"a={text}")
        except UserError as error:
            assert str(error)

    answers_at_once(answer)


@settings(configured, max_examples=300)
@given(pieces=st.lists(ALPHABET | st.text(max_size=3), max_size=60))
def test_text_that_looks_like_yaml(pieces: list[str], tmp_path: Path) -> None:
    read(tmp_path / "text.yaml", "".join(pieces))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_much_text_that_looks_like_yaml(tmp_path: Path) -> None:
    """A minute, or `EMMA_FUZZ_SECONDS`, of random text, and of shipped recipes with pieces cut out and put in. Texts
    follow from their seeds; `EMMA_FUZZ_SEED` is the first one."""
    recipe = dump_yaml(load_recipe("demo"))

    def text_of(data: st.DataObject) -> str:
        if data.draw(st.booleans()):
            return "".join(data.draw(st.lists(ALPHABET | st.text(max_size=3), max_size=100)))
        text = recipe
        for _ in range(data.draw(st.integers(1, 4))):
            begin = data.draw(st.integers(0, len(text)))
            end = min(len(text), begin + data.draw(st.integers(0, 30)))
            text = text[:begin] + data.draw(ALPHABET | st.text(max_size=5)) + text[end:]
        return text

    def read_one(data: st.DataObject) -> None:
        nonlocal texts
        texts += 1
        read(tmp_path / "text.yaml", text_of(data))

    texts, begun = 0, time.monotonic()
    first = block = int(os.environ.get("EMMA_FUZZ_SEED", "0"))
    seconds = float(os.environ.get("EMMA_FUZZ_SECONDS", "60"))
    drawn = settings(configured, max_examples=250, derandomize=False)
    while block == first or time.monotonic() - begun < seconds:
        block += 1
        seed(block)(drawn(given(data=st.data())(read_one)))()
    print(f"{texts:,} texts in {time.monotonic() - begun:.0f} s")
    assert texts >= block - first


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
        ),
        "a: " + "[" * 3000 + "]" * 3000,
        "a: " + "{b: " * 3000 + "1" + "}" * 3000,
        "a: &a {b: *a}",
        "a: &a [*a]",
        "a: &a\n  <<: *a",
        "x: &x {a: 1}\n"
        + "".join(
            f"y{i}: &y{i} {{<<: [*{'x' if i == 0 else f'y{i - 1}'}, *{'x' if i == 0 else f'y{i - 1}'}]}}\n"
            for i in range(40)
        ),
        "a: " + "9" * 5000,
        "a: 2026-02-30",
        "a: !!binary '!'",
        "a: !!float x",
        "? [a, b]\n: 1",
        "? {a: 1}\n: 1",
        "a: <<\n<<: 3",
        "a: " + "x" * 2**21,
        "\ufeffa: 1\n\x00",
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_hostile_text_gets_a_message_at_once(text: str, tmp_path: Path) -> None:
    def read_as_file() -> None:
        (tmp_path / "hostile.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            load_recipe(tmp_path / "hostile.yaml")

    def read_as_override() -> None:
        with pytest.raises(UserError):
            load_recipe("demo", [f"validation.groups={text.removeprefix('a: ')}"])

    answers_at_once(read_as_file)
    answers_at_once(read_as_override)
