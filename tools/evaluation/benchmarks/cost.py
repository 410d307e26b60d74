"""Estimates a run's cost: from what finished languages really took or, before there are any, from a sample of items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.tools.evaluation.benchmarks.definitions import speeds
from emma.tools.evaluation.benchmarks.items import Item
from emma.tools.evaluation.benchmarks.records import read_unit, unit_file
from emma.tools.evaluation.benchmarks.run import Runner
from emma.tools.evaluation.benchmarks.units import Unit
from emma.tools.inspection.models import loading, tokenizer_options

__all__ = ["Cost", "estimate", "parameters", "table"]

_LANGUAGES = 3
_ITEMS = 8

_LONGER = 1.3
"""An answer is expected to have this many times the tokens of its reference, up to the cap."""


@dataclass(frozen=True)
class Cost:
    """Estimate for one benchmark: languages to run, items, requests, tokens read, tokens generated, hours.

    Attributes:
        measured: number of finished languages, of this or another model in the evaluation's folder, that it rests on;
            0: a sample of items and assumed speeds.
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


def estimate(runner: Runner, units: Sequence[Unit]) -> list[Cost]:
    """Cost per benchmark.

    Tokens are those that are really forwarded: what an item's labels share counts once.

    Args:
        runner: runner for the model, of which only the tokenizer is loaded.
        units: what will be run.
    """
    from transformers import AutoTokenizer

    folder = runner.target.folder
    with loading(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
    speed = speeds()[runner.model_settings.backend]
    scale = parameters(runner.target.folder) / speed["parameters"]
    costs = []
    for name in dict.fromkeys(unit.benchmark.name for unit in units):
        mine = [unit for unit in units if unit.benchmark.name == name]
        step = max(1, len(mine) // _LANGUAGES)
        chosen = mine[::step][:_LANGUAGES]
        items = requests = 0
        read = new = 0.0
        for unit in chosen:
            found = runner.items(unit)
            sample = found[:: max(1, len(found) // _ITEMS)][:_ITEMS]
            scale_up = len(found) / max(1, len(sample))
            items += len(found)
            # One position serves all labels if only their last tokens matter.
            each = [1 if unit.benchmark.scoring == "last_token" else max(1, len(i.choices)) for i in sample]
            scale_up *= unit.benchmark.samples
            requests += round(sum(each) * scale_up)
            read += _read(runner, unit, tokenizer, sample) * scale_up
            new += _new(runner, unit, tokenizer, sample) * scale_up
        factor = len(mine) / len(chosen)
        read, new = read * factor, new * factor
        seconds = (read / speed["prompt"] + new / speed["new"]) * scale
        assumed = seconds
        taken = _taken(runner, mine)
        if taken and items:
            known_items = sum(row["items"] for row in taken)
            share = items * factor / known_items
            total = sum(row["tokens_forwarded"] for row in taken) * share
            new *= total / max(1.0, read + new)
            read, seconds = total - new, sum(row["seconds"] for row in taken) * share
        costs.append(
            Cost(
                name,
                len(mine),
                round(items * factor),
                round(requests * factor),
                round(read),
                round(new),
                seconds / 3600,
                assumed / 3600,
                len(taken),
            )
        )
    return costs


def _taken(runner: Runner, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """What finished languages of a benchmark took, with this model."""
    found = []
    for unit in units:
        path = unit_file(runner.output, runner.target.model, unit.benchmark.name, unit.language)
        done = read_unit(path)
        if done is not None and done.details.get("tokens_forwarded") and done.details.get("items"):
            found.append(dict(done.details))
    return found


def _read(runner: Runner, unit: Unit, tokenizer: Any, sample: Sequence[Item]) -> int:
    """Tokens of a sample of items that the model reads."""
    from emma.tools.evaluation.benchmarks.prefixes import Row, group_rows

    def ids(text: str, plain: bool = False) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=not plain)["input_ids"]
        return found

    benchmark = unit.benchmark
    if benchmark.kind == "likelihood":
        total = 0
        for item in sample:
            length = len(ids(item.prompt, plain=True))
            window = min(runner.window, 4096)
            # Windows that begin half a window apart read most tokens twice.
            total += (
                length
                if length <= window
                else length + (math.ceil(2 * (length - window) / window) * window) // 2
            )
        return total
    if benchmark.kind == "generation":
        room = runner.window - runner.new_tokens(benchmark)
        return sum(min(room, len(ids(item.prompt))) for item in sample)
    rows: list[Row] = []
    for item in sample:
        prompt = ids(item.prompt)
        if benchmark.prompt_tokens:
            prompt = prompt[: benchmark.prompt_tokens]
        for choice in item.choices:
            if benchmark.scoring == "last_token":
                whole = [*prompt, ids(benchmark.delimiter + choice)[-1]]
            else:
                whole = ids(item.prompt + benchmark.delimiter + choice)
            whole = whole[-(runner.window + 1) :]
            rows.append(Row(len(rows), tuple(whole), min(len(prompt), len(whole) - 1)))
    return sum(group.tokens for group in group_rows(rows))


def _new(runner: Runner, unit: Unit, tokenizer: Any, sample: Sequence[Item]) -> int:
    """Tokens of a sample of items that the model is expected to write: about its reference's, at most the cap; the cap
    if what follows is not like the reference (worked answers) or there is none."""
    benchmark = unit.benchmark
    if benchmark.kind != "generation":
        return 0
    most = runner.new_tokens(benchmark)
    if benchmark.final is not None or benchmark.reference is None or "exact_match" in benchmark.metrics:
        return most * len(sample)
    lengths = [len(tokenizer(item.reference or "", add_special_tokens=False)["input_ids"]) for item in sample]
    return sum(min(most, round(_LONGER * length) + 1) for length in lengths)


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
        "Where languages of a benchmark are finished, tokens and hours are what those took; else hours are for one H100 "
        f"at the assumed speeds of {backend} (recipes/evaluation/tiers.yaml), scaled by model size."
    )
    return "\n".join(lines)
