"""A benchmark's items in a language: prompts with worked examples, choices and references, all as text."""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import Benchmark, language_names, language_words
from emma.tools.evaluation.benchmarks.rows import Row, read_rows
from emma.tools.evaluation.benchmarks.stores import Store

__all__ = ["Item", "build_items", "drawn_rows", "draws", "final_pattern", "program_of", "render", "stops"]

_SEED = 42
"""Seed with which the authors drew examples."""

_HARNESS_SEED = 1234
"""lm-eval's default `fewshot_random_seed`."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        index: its position in the split, from 0.
        prompt: what the model reads.
        choices: continuations to choose from (without the delimiter between prompt and choice).
        gold: index of the correct choice.
        reference: text that an answer is compared with.
        row: the fields that it was rendered from.
        examples: the rows of its worked examples.
        cluster: what it belongs to, as a hash; empty if it stands by itself.
        source: the sentence to translate; None if it is no translation.
    """

    index: int
    prompt: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    reference: str | None = None
    row: Mapping[str, Any] | None = None
    examples: tuple[dict[str, Any], ...] = ()
    cluster: str = ""
    source: str | None = None


def build_items(
    benchmark: Benchmark, language: str, store: Store, *, limit: int | None = None, shots: int | None = None
) -> list[Item]:
    """Items of a language, in the order of the data.

    Args:
        benchmark: the benchmark.
        language: the language's code in results.
        store: where the data is.
        limit: take at most this many items, from the start.
        shots: number of worked examples; default the benchmark's.

    Raises:
        UserError: data is missing or has another schema, or there are fewer examples than shots.
    """
    code = benchmark.code(language)
    return [
        render(benchmark, code, row, examples, index)
        for index, (row, examples) in enumerate(
            drawn_rows(benchmark, language, store, limit=limit, shots=shots)
        )
    ]


def drawn_rows(
    benchmark: Benchmark, language: str, store: Store, *, limit: int | None = None, shots: int | None = None
) -> list[tuple[Row, list[Row]]]:
    """What `build_items` renders: the row of each item and the rows of its worked examples. Arguments are the same."""
    code = benchmark.code(language)
    count = benchmark.shots if shots is None else shots
    rows = read_rows(store, benchmark.data, code, "test")[:limit]
    examples: list[Row] = []
    chosen: Iterator[Sequence[int]] = iter([()] * len(rows))
    if count:
        if "examples" not in benchmark.data.splits:
            raise UserError(
                f"{benchmark.name}: its data has no split for examples, so it cannot have {count} shots"
            )
        examples = read_rows(store, benchmark.data, code, "examples")
        if len(examples) < count:
            raise UserError(
                f"{benchmark.name}/{language}: {count} shots need {count} examples, but there are {len(examples)}"
            )
        chosen = draws(benchmark.draw, len(examples), count, len(rows))
    return [
        (row, [examples[number] for number in numbers]) for row, numbers in zip(rows, chosen, strict=True)
    ]


def draws(kind: str, examples: int, shots: int, items: int) -> Iterator[Sequence[int]]:
    """Indices of each item's examples.

    Args:
        kind: how to draw. `pandas` (`DataFrame.sample(shots, random_state=s)`) and `integers`
            (`random.randint` after `random.seed(s)`, so that an example may repeat) draw as the authors' code
            does, with a seed s from 0 to 1000 per item, itself drawn after `random.seed(42)`. `harness` draws
            as lm-eval does, with `random.sample` of one generator for all items.
        examples: number of examples to draw from.
        shots: number of examples to draw.
        items: number of items.
    """
    if kind == "harness":
        generator = random.Random(_HARNESS_SEED)
        for _ in range(items):
            yield generator.sample(range(examples), shots)
        return
    seeds = random.Random(_SEED)
    for seed in [seeds.randint(0, 1000) for _ in range(items)]:
        if kind == "pandas":
            yield np.random.RandomState(seed).choice(examples, size=shots, replace=False).tolist()
        else:
            generator = random.Random(seed)
            yield [generator.randint(0, examples - 1) for _ in range(shots)]


def render(benchmark: Benchmark, code: str, row: Row, examples: Sequence[Row] = (), index: int = 0) -> Item:
    """Renders a row of data as an item.

    Args:
        benchmark: the benchmark.
        code: the source's language code.
        row: fields of the question.
        examples: fields of the worked examples.
        index: index of the item.

    Raises:
        UserError: a field is missing or has a value that the templates cannot use.
    """
    fields = _fields(benchmark, code, row)

    def text(template: str, values: Mapping[str, Any] = fields) -> str:
        try:
            return _template(template).render(values)
        except (jinja2.UndefinedError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{benchmark.name}/{code}, item {index}: {error}; its fields are {', '.join(map(str, row))}"
            ) from None

    shots = [text(benchmark.shot, _fields(benchmark, code, example)) for example in examples]
    prompt = text(benchmark.prompt, {**fields, "shots": benchmark.shot_separator.join(shots)})
    reference = text(benchmark.reference) if benchmark.reference is not None else None
    choices: tuple[str, ...] = ()
    gold = None
    if benchmark.kind == "choice":
        choices = tuple(choice for choice in (text(template) for template in benchmark.choices) if choice)
        gold = _gold(benchmark, code, index, text, choices)
    cluster = _template(benchmark.cluster).render(fields) if benchmark.cluster else ""
    cluster = hashlib.sha256(cluster.encode()).hexdigest()[:16] if cluster else ""
    source = str(fields["source"]) if benchmark.from_english is not None else None
    return Item(index, prompt, choices, gold, reference, fields, tuple(examples), cluster, source)


def _gold(benchmark: Benchmark, code: str, index: int, text: Any, choices: Sequence[str]) -> int:
    place = f"{benchmark.name}/{code}, item {index}"
    if benchmark.answer is not None:
        answer = text(benchmark.answer)
        if answer not in choices:
            raise UserError(f"{place}: the answer `{answer}` is none of {', '.join(choices)}")
        return choices.index(answer)
    number = text(benchmark.answer_index or "")
    if not re.fullmatch(r"\d+", number) or int(number) >= len(choices):
        raise UserError(f"{place}: the answer has index {number}, but there are {len(choices)} choices")
    return int(number)


def stops(benchmark: Benchmark, code: str, item: Item | None = None) -> tuple[str, ...]:
    """Texts that end a generated answer, with the item's own.

    Raises:
        UserError: the item's field of them is no list of texts.
    """
    found = [_template(stop).render(words=language_words(benchmark, code)) for stop in benchmark.stop]
    if item is not None and benchmark.stop_field is not None:
        more = (item.row or {}).get(benchmark.stop_field)
        if (
            not isinstance(more, Sequence)
            or isinstance(more, str)
            or not all(isinstance(m, str) for m in more)
        ):
            raise UserError(
                f"{benchmark.name}/{code}, item {item.index}: {benchmark.stop_field} is {more!r}, not a list of texts"
            )
        found += more
    return tuple(dict.fromkeys(stop for stop in found if stop))


def program_of(benchmark: Benchmark, code: str, item: Item, answer: str) -> str:
    """The program that an answer makes, without what follows the first text that ends it.

    Raises:
        UserError: the item lacks a field that the program needs.
    """
    assert benchmark.program is not None
    places = [place for stop in stops(benchmark, code, item) if (place := answer.find(stop)) >= 0]
    fields = {**(item.row or {}), "answer": answer[: min(places, default=len(answer))]}
    try:
        return _template(benchmark.program.text).render(fields)
    except (jinja2.UndefinedError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{benchmark.name}/{code}, item {item.index}: {error}") from None


def final_pattern(benchmark: Benchmark, code: str) -> str | None:
    """Pattern that finds the result of a worked answer; None if the benchmark has none."""
    if benchmark.final is None:
        return None
    return _template(benchmark.final).render(words=language_words(benchmark, code))


def _fields(benchmark: Benchmark, code: str, row: Row) -> dict[str, Any]:
    fields = {"language": code, "words": language_words(benchmark, code), **row}
    if benchmark.from_english is not None:
        names = language_names()
        english, other = names["eng_Latn"], names.get(code, code)
        if benchmark.from_english:
            fields |= {"source_name": english, "target_name": other}
        else:
            fields |= {"source_name": other, "target_name": english}
            fields |= {"source": row["target"], "target": row["source"]}
    return fields


def _harness_clean(text: str | None) -> str:
    """Cleans texts of multilingual ARC as lm-eval does: no brackets, no double spaces; None becomes empty."""
    cleaned = re.sub(r"\[.*?\]", "", (text or "").strip().replace(" [title]", ". "))
    return cleaned.replace("  ", " ")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    environment.filters["harness_clean"] = _harness_clean
    return environment


@functools.lru_cache(maxsize=512)
def _template(text: str) -> jinja2.Template:
    return _environment().from_string(text)
