"""How to read and show benchmark scores: main metrics, baselines, and metrics' directions and units."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Benchmark", "Metric", "base_name", "benchmark", "metric", "place"]

_FILE = Path(__file__).parents[2] / "recipes" / "evaluation" / "measures.yaml"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        key: its name in results.
        name: its display name.
        better: `higher` or `lower`.
        factor: multiplies the stored value to give the displayed one.
        digits: decimal places to display.
        kind: `score`, `baseline` (chance, majority), `health` (a sign of broken outputs), `language` (of outputs), or
            `unseen` (a learned metric where its encoder does not know the languages: not valid, in no average).
    """

    key: str
    name: str
    better: str = "higher"
    factor: float = 1.0
    digits: int = 3
    kind: str = "score"

    @property
    def is_score(self) -> bool:
        """Whether it measures how good a model is."""
        return self.kind == "score"

    @property
    def sign(self) -> int:
        """1 if higher is better, −1 if lower is."""
        return 1 if self.better == "higher" else -1

    def show(self, value: float | None, signed: bool = False) -> str:
        """The value in its display unit; `–` for None."""
        if value is None:
            return "–"
        text = f"{value * self.factor:{'+' if signed else ''}.{self.digits}f}"
        return text.replace("-", "−")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        key: its name in results, without the variant.
        name: its display name.
        metric: its main metric.
        chance: accuracy of guessing; None if not applicable.
        majority: accuracy of the most frequent label; None if unknown or different between languages.
        parallel: whether its items are the same in every language.
    """

    key: str
    name: str
    metric: str
    chance: float | None = None
    majority: float | None = None
    parallel: bool = False


@functools.cache
def _tables() -> dict[str, Any]:
    from emma.recipes.reading import read_yaml

    return read_yaml(_FILE).values


def metric(key: str) -> Metric:
    """What is known about a metric; one that the table lacks is shown as stored, with higher being better."""
    values = _tables()["metrics"].get(key)
    return Metric(key, **values) if values else Metric(key, key)


def base_name(name: str) -> str:
    """Benchmark without its variant: `sib200_emma` → `sib200`, `heldout/monolingual` → `heldout`."""
    return name.split("/")[0].removesuffix("_emma")


def benchmark(name: str) -> Benchmark:
    """What is known about a benchmark, by its name in results; a variant has its own definition's title."""
    key = base_name(name)
    values = _tables()["benchmarks"].get(key)
    title = _titles().get(name)
    if values is None:
        return Benchmark(name, title or name, "")
    return Benchmark(key, **{**values, "name": title or values["name"]})


def place(name: str) -> tuple[int, str]:
    """Sort key that puts benchmarks in the tables' order, unknown ones last."""
    known = list(_tables()["benchmarks"])
    key = base_name(name)
    return known.index(key) if key in known else len(known), name


@functools.cache
def _titles() -> dict[str, str]:
    """Titles of the benchmarks that this project runs."""
    from emma.recipes.reading import read_yaml

    definitions = read_yaml(_FILE.with_name("benchmarks.yaml")).values["benchmarks"]
    return {name: values["title"] for name, values in definitions.items()}
