"""Estimates a run's cost: from a sample of its requests, and from what finished languages really took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.tools.evaluation.benchmarks.definitions import speeds
from emma.tools.evaluation.benchmarks.harness import HarnessUnit, build_tasks
from emma.tools.evaluation.benchmarks.items import drawn_rows, render
from emma.tools.evaluation.benchmarks.records import read_unit, unit_file
from emma.tools.evaluation.benchmarks.run import Runner, quiet
from emma.tools.evaluation.benchmarks.units import Unit
from emma.tools.evaluation.likelihood import cut_windows
from emma.tools.inspection.models import loading, tokenizer_options

__all__ = ["Cost", "estimate", "parameters", "table"]

_LANGUAGES, _HARNESS_LANGUAGES = 64, 2
"""Languages of a benchmark that are looked at, evenly spaced; of lm-eval's tasks fewer, since each has to be built."""
_ITEMS = 1024
"""Items of a benchmark that are looked at, over all of its languages, and in the one that shows what items share."""

_LONGER = 1.3
"""An answer is expected to have this many times the tokens of its reference, up to the cap."""


@dataclass(frozen=True)
class Cost:
    """Estimate for one benchmark: languages to run, items, requests, tokens read, tokens generated, hours.

    Attributes:
        measured: number of finished languages of the same model and settings that it rests on.
        piloted: whether the model answered a few items, from which the length of answers is known.
        assumed_hours: the hours by assumed speeds, whatever is finished; so that all shards balance alike.
    """

    benchmark: str
    languages: int
    items: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    hours: float
    assumed_hours: float
    measured: int = 0
    piloted: bool = False


@dataclass(frozen=True)
class _Asked:
    """An item's requests as token ids, how many they are, and the expected and the most tokens of an answer (0: none is
    generated)."""

    rows: tuple[tuple[int, ...], ...]
    requests: int
    answer: int = 0
    cap: int = 0


@dataclass(frozen=True)
class _Language:
    """Expected tokens of one language."""

    items: int
    requests: float
    read: float
    new: float

    @property
    def total(self) -> float:
        return self.read + self.new


def estimate(runner: Runner, units: Sequence[Unit | HarnessUnit], pilot: int = 0) -> list[Cost]:
    """Cost per benchmark.

    Tokens are those that are really forwarded: what requests share counts once, every row of a batch writes until the last
    answer of the batch ends, and padding counts nothing. What a language costs comes from a sample of its items; how much
    less all items cost together, from all of one language. Where languages are finished, estimates are scaled to what these
    took.

    Args:
        runner: runner for the model, of which only the tokenizer is loaded, unless there is a pilot.
        units: what will be run.
        pilot: items of each generating benchmark that the model answers first; 0: answers are expected to be somewhat longer
            than their references, and as long as they may be where there is none.
    """
    from transformers import AutoTokenizer

    folder = runner.target.folder
    with loading(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
    speed = speeds()[runner.model_settings.backend]
    scale = parameters(folder) / speed["parameters"]
    costs = []
    for name in dict.fromkeys(unit.benchmark_name for unit in units):
        mine = [unit for unit in units if unit.benchmark_name == name]
        most = _LANGUAGES if isinstance(mine[0], Unit) else _HARNESS_LANGUAGES
        chosen = [mine[place * len(mine) // min(most, len(mine))] for place in range(min(most, len(mine)))]
        answers = _pilot(runner, mine[0], pilot) if pilot and isinstance(mine[0], Unit) else []
        found = _languages(runner, chosen, tokenizer, answers)
        factor = len(mine) / len(chosen)
        items, requests, read, new = (
            factor * sum(getattr(part, key) for part in found.values())
            for key in ("items", "requests", "read", "new")
        )
        seconds = assumed = (read / speed["prompt"] + new / speed["new"]) * scale
        taken = _taken(runner, mine)
        if taken:
            expected = sum(
                language.total * taken[place]["items"] / max(1, language.items)
                for place in taken
                for language in [found.get(place) or _mean(found)]
            )
            share = (read + new) / max(1.0, expected)
            ratio = sum(row["tokens_forwarded"] for row in taken.values()) / max(1.0, expected)
            read, new = read * ratio, new * ratio
            seconds = sum(row["seconds"] for row in taken.values()) * share
        costs.append(
            Cost(
                name,
                len(mine),
                round(items),
                round(requests),
                round(read),
                round(new),
                seconds / 3600,
                assumed / 3600,
                len(taken),
                bool(answers),
            )
        )
    return costs


def _languages(
    runner: Runner, units: Sequence[Unit | HarnessUnit], tokenizer: Any, answers: Sequence[float]
) -> dict[str, _Language]:
    """Expected tokens by unit. `answers`: tokens of some answers in the first unit, if known."""
    from emma.tools.evaluation.benchmarks.prefixes import Row, group_rows

    def grouped(asked: Sequence[_Asked]) -> int:
        rows = [row for item in asked for row in item.rows]
        return sum(
            group.tokens for group in group_rows([Row(place, row, 1) for place, row in enumerate(rows)])
        )

    def apart(asked: Sequence[_Asked]) -> int:
        return sum(grouped([item]) if not item.answer else len(item.rows[0]) for item in asked)

    found: dict[str, _Language] = {}
    shared, usual = 1.0, 0.0
    for place, unit in enumerate(units):
        most = _ITEMS if not place else max(8, _ITEMS // len(units))
        total, asked = _ask(runner, unit, tokenizer, most)
        if not asked:
            found[unit.name] = _Language(0, 0, 0, 0)
            continue
        if not place and not asked[0].answer:
            shared = grouped(asked) / max(1, apart(asked))
        rows = total * (unit.benchmark.samples if isinstance(unit, Unit) else 1)
        up = rows / len(asked)
        new = 0.0
        if asked[0].answer:
            lengths: list[float] = [item.answer for item in asked]
            here, cap = math.fsum(lengths) / len(lengths), asked[0].cap
            usual = usual or here
            if answers:
                # Answers that stopped by themselves are as much longer as the references are.
                lengths = [length if length >= cap else min(cap, length * here / usual) for length in answers]
            room = min(runner.window, max(len(item.rows[0]) for item in asked) + cap)
            new = rows * (_longest_of(lengths, min(rows, _rows_at_once(runner, room))) - 1)
        requests = sum(item.requests for item in asked) * up
        # What items share is known exactly where all were looked at.
        whole = len(asked) == total and not asked[0].answer
        read = grouped(asked) if whole else apart(asked) * up * shared
        found[unit.name] = _Language(total, requests, read, new)
    return found


def _rows_at_once(runner: Runner, tokens: int) -> int:
    """Rows of `tokens` tokens that write together; vLLM replaces each as it ends."""
    settings = runner.model_settings
    if settings.backend == "vllm":
        return 1
    return settings.batch_size or max(1, settings.budget // tokens)


def _longest_of(lengths: Sequence[float], count: int) -> float:
    """Expected maximum of `count` values drawn from a sample."""
    ordered, n = sorted(lengths), len(lengths)
    return math.fsum(
        value * (((place + 1) / n) ** count - (place / n) ** count) for place, value in enumerate(ordered)
    )


def _mean(found: Mapping[str, _Language]) -> _Language:
    sums = [
        sum(getattr(part, key) for part in found.values()) / len(found)
        for key in ("items", "requests", "read", "new")
    ]
    return _Language(round(sums[0]), *sums[1:])


def _ask(runner: Runner, unit: Unit | HarnessUnit, tokenizer: Any, most: int) -> tuple[int, list[_Asked]]:
    """Number of items of a unit, and at most `most` of them."""
    if isinstance(unit, HarnessUnit):
        return _ask_harness(runner, unit, tokenizer, most)
    benchmark, settings = unit.benchmark, runner.settings
    drawn = drawn_rows(
        benchmark, unit.language, runner.store, limit=settings.limit, shots=settings.shots_of(benchmark)
    )
    places = range(len(drawn))
    if most < len(drawn):
        places = [place * len(drawn) // most for place in range(most)]  # type: ignore[assignment]
    code = benchmark.code(unit.language)
    items = [render(benchmark, code, *drawn[place], place) for place in places]
    cap = runner.new_tokens(benchmark)
    # Worked answers are longer than what they are compared with.
    free = benchmark.final is not None or benchmark.reference is None or "exact_match" in benchmark.metrics

    def plain(text: str, special: bool = False) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    asked = []
    for item in items:
        if benchmark.kind == "likelihood":
            ids = [0, *plain(item.prompt)]
            window = min(runner.window, 4096)
            parts = [
                tuple(ids[cut.start : cut.end + 1])
                for cut in cut_windows(0, len(ids), window, max(1, window // 2))
            ]
            asked.append(_Asked(tuple(parts), 1))
        elif benchmark.kind == "generation":
            answer = cap if free else min(cap, round(_LONGER * len(plain(item.reference or ""))) + 1)
            prompt = plain(item.prompt, special=True)[-(runner.window - cap) :]
            asked.append(_Asked((tuple(prompt),), 1, answer, cap))
        else:
            prompt = plain(item.prompt, special=True)[: benchmark.prompt_tokens]
            last = benchmark.scoring == "last_token"
            labels = [benchmark.delimiter + choice for choice in item.choices]
            rows = [
                [*prompt, plain(label)[-1]] if last else plain(item.prompt + label, special=True)
                for label in labels
            ]
            # One position serves all labels if only their last tokens matter.
            asked.append(_Asked(_cut(rows, runner.window), 1 if last else len(rows)))
    return len(drawn), asked


def _ask_harness(runner: Runner, unit: HarnessUnit, tokenizer: Any, most: int) -> tuple[int, list[_Asked]]:
    """The same for lm-eval's tasks."""
    documents: dict[tuple[str, int], list[Any]] = {}
    with quiet():
        tasks = build_tasks(unit, runner.store, (runner.settings.shots or {}).get(unit.benchmark_name))
        for name, task in tasks.items():
            task.build_all_requests(limit=runner.settings.limit, rank=0, world_size=1)
            for request in task.instances:
                documents.setdefault((name, request.doc_id), []).append(request)
    groups = list(documents.values())
    if most < len(groups):
        groups = [groups[place * len(groups) // most] for place in range(most)]
    asked = []
    for group in groups:
        first = group[0]
        if first.request_type == "generate_until":
            cap = int(first.args[1].get("max_gen_toks", 256))
            ids = tokenizer(first.args[0])["input_ids"][-max(1, runner.window - cap) :]
            asked.append(_Asked((tuple(ids),), 1, cap, cap))
        else:
            rows = [tokenizer("".join(map(str, request.args[:2])))["input_ids"] for request in group]
            asked.append(_Asked(_cut(rows, runner.window), len(rows)))
    return len(documents), asked


def _cut(rows: Sequence[Sequence[int]], window: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[-(window + 1) :]) for row in rows)


def _pilot(runner: Runner, unit: Unit, items: int) -> list[float]:
    """Tokens of the answers that the model gives to a few items, what ends them included; none if it generates none."""
    if unit.benchmark.kind != "generation" or runner.model_settings.backend == "vllm":
        return []
    from emma.tools.evaluation.benchmarks.tasks import BenchmarkTask

    model, cap = runner.model, runner.new_tokens(unit.benchmark)
    task = BenchmarkTask(unit.benchmark, unit.language, runner.items(unit)[:items], cap, runner.resources)
    model.reader.take()
    with quiet():
        task.build_all_requests(rank=0, world_size=1)
        answers = model.generate_until(task.instances)
    prompts = [len(model.tok_encode(request.args[0])) for request in task.instances]
    read = sum(min(length, runner.window - cap) for length in prompts)
    steps = (model.reader.take() - read) / len(answers) + 1
    lengths = [len(ids) + 1.0 for ids in model.plain_ids(answers)]
    # The text of an answer may have other tokens than were written; batches went on until their longest answer ended.
    rows = _rows_at_once(runner, min(runner.window, max(prompts) + cap))
    scale = steps / _longest_of(lengths, min(rows, len(lengths)))
    return [min(cap, length * scale) for length in lengths]


def _costly(runner: Runner, unit: Unit | HarnessUnit) -> dict[str, Any]:
    """The settings of a unit that change what an item costs."""
    if isinstance(unit, HarnessUnit):
        return {"tasks": list(unit.tasks), "window": runner.window}
    return {
        "shots": runner.settings.shots_of(unit.benchmark),
        "max_new_tokens": runner.new_tokens(unit.benchmark),
        "window": runner.window,
    }


def _taken(runner: Runner, units: Sequence[Unit | HarnessUnit]) -> dict[str, dict[str, Any]]:
    """What finished languages of a benchmark took, with this model and its settings."""
    found = {}
    for unit in units:
        path = unit_file(runner.output, runner.target.model, unit.benchmark_name, unit.language)
        done = read_unit(path)
        if done is None or not done.details.get("tokens_forwarded") or not done.details.get("items"):
            continue
        settings = done.details.get("settings", {})
        if all(settings.get(key) == value for key, value in _costly(runner, unit).items()):
            found[unit.name] = dict(done.details)
    return found


def parameters(folder: Path) -> int:
    """Number of parameters of a model, from the headers of its safetensors files."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as handle:
            total += sum(math.prod(handle.get_slice(key).get_shape()) for key in handle.keys())  # noqa: SIM118
    return total


def table(costs: Sequence[Cost], backend: str) -> str:
    """Costs as a text table, with their sum."""
    total = {
        key: sum(asdict(cost)[key] for cost in costs)
        for key in ("languages", "items", "requests", "prompt_tokens", "new_tokens", "hours")
    }
    lines = [
        f"{'benchmark':<26}{'languages':>10}{'items':>10}{'requests':>10}{'read tok.':>15}{'new tok.':>15}{'hours':>10}"
    ]
    for row in [*(asdict(cost) for cost in costs), {"benchmark": "all", **total}]:
        lines.append(
            f"{row['benchmark']:<26}{row['languages']:>10,}{row['items']:>10,}{row['requests']:>10,}"
            f"{row['prompt_tokens']:>15,}{row['new_tokens']:>15,}{row['hours']:>10.2f}"
        )
    lines.append(
        "Where languages of a benchmark are finished, tokens and hours are scaled to what those took; else hours are for one "
        f"H100 at the assumed speeds of {backend} (recipes/evaluation/tiers.yaml), scaled by model size, and answers are "
        "taken to be 1.3 times as long as their references (--pilot asks the model)."
    )
    return "\n".join(lines)
