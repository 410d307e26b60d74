"""Benchmark averages as a text table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark
from emma.tools.evaluation.results import Result

__all__ = ["averages_table"]


def averages_table(rows: Sequence[Result], models: Sequence[str], languages: int) -> str:
    """Mean of each benchmark's metrics over languages, one column per model; also each language, if few.

    Args:
        rows: rows of the long table.
        models: models to show as columns.
        languages: benchmarks with at most this many languages also list each language (0: all do).
    """
    known = set(benchmark_names(on_demand=True))
    width = max(12, *(len(model) + 2 for model in models))
    lines = [
        f"{'benchmark':<26}{'metric':<20}{'languages':>10}" + "".join(f"{model:>{width}}" for model in models)
    ]
    order = [name for name in benchmark_names(on_demand=True) if any(row.benchmark == name for row in rows)]
    for name in order:
        for metric in (*get_benchmark(name).metrics, "chance", "majority"):
            values = {
                (row.model, row.language): row.value
                for row in rows
                if row.benchmark in known
                and row.benchmark == name
                and row.metric == metric
                and row.model in models
            }
            codes = sorted({language for _, language in values})
            if not codes:
                continue
            lines.append(
                _line(
                    name,
                    metric,
                    len(codes),
                    [_mean([v for (m, _), v in values.items() if m == model]) for model in models],
                    width,
                )
            )
            if metric == get_benchmark(name).metrics[0] and (languages == 0 or len(codes) <= languages):
                lines += [
                    _line("", code, 1, [values.get((model, code)) for model in models], width)
                    for code in codes
                ]
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _line(name: str, what: str, count: int, values: Sequence[float | None], width: int) -> str:
    cells = "".join(f"{'–' if value is None else f'{value:.3f}':>{width}}" for value in values)
    return f"{name:<26}{what:<20}{count:>10}{cells}"
