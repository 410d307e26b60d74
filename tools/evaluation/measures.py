"""How scores of a benchmark are read and shown: its main metric, the direction and unit of metrics, its baselines."""

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
        name: its name for people.
        better: `higher` or `lower`.
        factor: from the stored value to the shown one.
        digits: digits shown after the point.
        kind: `score`, `baseline` (chance, majority) or `health` (a sign of broken outputs).
    """

    key: str
    name: str
    better: str = "higher"
    factor: float = 1.0
    digits: int = 3
    kind: str = "score"

    @property
    def is_score(self) -> bool:
        """Whether it says how good a model is."""
        return self.kind == "score"

    @property
    def sign(self) -> int:
        """1 where higher is better, −1 where lower is."""
        return 1 if self.better == "higher" else -1

    def show(self, value: float | None, signed: bool = False) -> str:
        """Value in its shown unit; `–` for none."""
        if value is None:
            return "–"
        text = f"{value * self.factor:{'+' if signed else ''}.{self.digits}f}"
        return text.replace("-", "−")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        key: its name in results, without the variant.
        name: its name for people.
        metric: the metric that stands for it.
        chance: accuracy of guessing, None where it has none.
        majority: accuracy of always giving the most frequent label, None where unknown or a matter of the language.
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
    from emma.recipes.compose import read_yaml

    return read_yaml(_FILE).values


def metric(key: str) -> Metric:
    """What is known about a metric; one that the table lacks is shown as it is stored, higher being better."""
    values = _tables()["metrics"].get(key)
    return Metric(key, **values) if values else Metric(key, key)


def base_name(name: str) -> str:
    """Benchmark without its variant: `sib200_emma` → `sib200`, `heldout/monolingual` → `heldout`."""
    return name.split("/")[0].removesuffix("_emma")


def benchmark(name: str) -> Benchmark:
    """What is known about a benchmark by its name in results; a variant has the title of its definition."""
    key = base_name(name)
    values = _tables()["benchmarks"].get(key)
    title = _titles().get(name)
    if values is None:
        return Benchmark(name, title or name, "")
    return Benchmark(key, **{**values, "name": title or values["name"]})


def place(name: str) -> tuple[int, str]:
    """Sorts benchmarks as the tables list them, unknown ones last."""
    known = list(_tables()["benchmarks"])
    key = base_name(name)
    return known.index(key) if key in known else len(known), name


@functools.cache
def _titles() -> dict[str, str]:
    """Titles of the benchmarks that this project runs."""
    from emma.recipes.compose import read_yaml

    definitions = read_yaml(_FILE.with_name("benchmarks.yaml")).values["benchmarks"]
    return {name: values["title"] for name, values in definitions.items()}
