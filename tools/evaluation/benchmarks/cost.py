"""Estimates a run's cost: requests and tokens from a sample of languages, time from assumed speeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.tools.evaluation.benchmarks.definitions import speeds
from emma.tools.evaluation.benchmarks.run import Runner
from emma.tools.evaluation.benchmarks.units import Unit
from emma.tools.inspection.models import loading, tokenizer_options

__all__ = ["Cost", "estimate", "parameters", "table"]

_LANGUAGES = 3
_ITEMS = 8


@dataclass(frozen=True)
class Cost:
    """Estimate for one benchmark: languages to run, items, requests, tokens read, tokens generated, hours.

    `new_tokens` and `hours` are upper bounds.
    """

    benchmark: str
    languages: int
    items: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    hours: float


def estimate(runner: Runner, units: Sequence[Unit]) -> list[Cost]:
    """Cost per benchmark, extrapolated from three languages each, assuming answers of maximum length.

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
    names = dict.fromkeys(unit.benchmark.name for unit in units)
    costs = []
    for name in names:
        mine = [unit for unit in units if unit.benchmark.name == name]
        benchmark = mine[0].benchmark
        step = max(1, len(mine) // _LANGUAGES)
        chosen = mine[::step][:_LANGUAGES]
        items = requests = tokens = 0
        for unit in chosen:
            found = runner.items(unit)
            sample = found[:: max(1, len(found) // _ITEMS)][:_ITEMS]
            # One forward pass serves all labels if only the next token matters.
            passes = [
                1 if benchmark.scoring == "last_token" else max(1, len(item.choices)) for item in sample
            ]
            lengths = [
                min(runner.window, len(tokenizer(item.prompt)["input_ids"])) * count
                + sum(
                    len(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in item.choices
                )
                for item, count in zip(sample, passes, strict=True)
            ]
            items += len(found)
            requests += round(sum(passes) / max(1, len(sample)) * len(found))
            tokens += round(sum(lengths) / max(1, len(sample)) * len(found))
        factor = len(mine) / len(chosen)
        new = items * factor * runner.new_tokens(benchmark) if benchmark.kind == "generation" else 0
        seconds = (tokens * factor / speed["prompt"] + new / speed["new"]) * scale
        costs.append(
            Cost(
                name,
                len(mine),
                round(items * factor),
                round(requests * factor),
                round(tokens * factor),
                round(new),
                seconds / 3600,
            )
        )
    return costs


def parameters(folder: Path) -> int:
    """Number of parameters of a model, from the headers of its safetensors files."""
    import math

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
        f"{'benchmark':<26}{'languages':>10}{'items':>10}{'requests':>10}{'read tok.':>15}{'new tok. ≤':>15}{'hours ≤':>10}"
    ]
    for row in [*(asdict(cost) for cost in costs), {"benchmark": "all", **total}]:
        lines.append(
            f"{row['benchmark']:<26}{row['languages']:>10,}{row['items']:>10,}{row['requests']:>10,}"
            f"{row['prompt_tokens']:>15,}{row['new_tokens']:>15,}{row['hours']:>10.2f}"
        )
    lines.append(
        f"Hours are for one H100 at the assumed speeds of {backend} (recipes/evaluation/tiers.yaml), scaled by model "
        "size; answers usually end sooner."
    )
    return "\n".join(lines)
