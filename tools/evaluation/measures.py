"""How scores of a benchmark are read and shown: its main metric, the direction and unit of metrics, its baselines."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Benchmark", "Metric", "base_name", "benchmark", "metric"]

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
        health: a sign of broken outputs rather than a score.
    """

    key: str
    name: str
    better: str = "higher"
    factor: float = 1.0
    digits: int = 3
    health: bool = False

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
    from recipes.compose import read_yaml

    return read_yaml(_FILE).values


def metric(key: str) -> Metric:
    """What is known about a metric; one that the table lacks is shown as it is stored, higher being better."""
    values = _tables()["metrics"].get(key)
    return Metric(key, **values) if values else Metric(key, key)


def base_name(name: str) -> str:
    """Benchmark without its variant: `sib200_emma` → `sib200`, `heldout/monolingual` → `heldout`."""
    return name.split("/")[0].removesuffix("_emma")


def benchmark(name: str) -> Benchmark:
    """What is known about a benchmark by its name in results; the variant of the authors (`_emma`) is named as such."""
    key = base_name(name)
    values = _tables()["benchmarks"].get(key)
    if values is None:
        return Benchmark(name, name, "")
    known = Benchmark(key, **values)
    if name.endswith("_emma"):
        return Benchmark(
            key,
            f"{known.name}, authors' variant",
            known.metric,
            known.chance,
            known.majority,
            known.parallel,
        )
    return known
