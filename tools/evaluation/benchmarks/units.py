"""Plans which benchmarks to run in which languages; a unit is one benchmark in one language."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import Benchmark, Tier, get_benchmark, language_order
from emma.tools.evaluation.benchmarks.harness import PREFIX, HarnessUnit, harness_units
from emma.tools.evaluation.benchmarks.rows import available
from emma.tools.evaluation.benchmarks.stores import HubStore, Store

__all__ = ["Plan", "Unit", "plan_units"]


@dataclass(frozen=True)
class Unit:
    """One benchmark in one language (given by its code in results)."""

    benchmark: Benchmark
    language: str

    @property
    def name(self) -> str:
        """`<benchmark>/<language>`."""
        return f"{self.benchmark.name}/{self.language}"

    @property
    def benchmark_name(self) -> str:
        """The benchmark's name in results."""
        return self.benchmark.name


@dataclass(frozen=True)
class Plan:
    """Units to run, in order: this project's, then lm-eval's; `missing` lists what was asked for but has no data."""

    units: tuple[Unit, ...]
    harness: tuple[HarnessUnit, ...] = ()
    missing: tuple[str, ...] = ()

    def share(self, shard: tuple[int, int] | None, costs: Mapping[str, float] | None = None) -> Plan:
        """What a shard (i, n) runs; everything if there is no shard.

        Units go to the shard with the least work so far, the most expensive first, so that shards take about as long.

        Args:
            shard: number of the shard and of all shards.
            costs: expected cost by benchmark, of one language; default all equal.
        """
        if shard is None:
            return self
        place, count = shard
        known = costs or {}
        loads = [0.0] * count
        mine = set()
        units: list[Unit | HarnessUnit] = [*self.units, *self.harness]
        for unit in sorted(units, key=lambda unit: (-known.get(unit.benchmark_name, 1.0), unit.name)):
            least = loads.index(min(loads))
            loads[least] += known.get(unit.benchmark_name, 1.0)
            if least == place:
                mine.add(unit.name)
        return replace(
            self,
            units=tuple(unit for unit in self.units if unit.name in mine),
            harness=tuple(unit for unit in self.harness if unit.name in mine),
        )


def plan_units(
    names: Sequence[str],
    store: Store,
    tier: Tier,
    languages: Collection[str] | None = None,
    *,
    skip_missing: bool = False,
) -> Plan:
    """Units of benchmarks, for a tier's languages or the given ones.

    Args:
        names: benchmarks.
        store: where the data is.
        tier: how many languages to take.
        languages: codes (or pairs) to take; default the tier's.
        skip_missing: skip languages without data, whatever the tier says.

    Raises:
        UserError: no benchmark has a given language, data is missing and not to be skipped, or no unit is left.
    """
    skip = skip_missing or tier.missing == "skip"
    theirs = tuple(
        unit
        for unit in harness_units([name for name in names if name.startswith(PREFIX)])
        if languages is None or unit.language in languages
    )
    names = [name for name in names if not name.startswith(PREFIX)]
    benchmarks = [get_benchmark(name) for name in names]
    if languages is not None and names:
        known = {code for b in benchmarks for label in b.languages for code in (label, b.code(label))}
        if unknown := sorted(set(languages) - known - {unit.language for unit in theirs}):
            raise UserError(f"no language {', '.join(unknown)} in {', '.join(names)}")
    units: list[Unit] = []
    missing: list[str] = []
    for benchmark in benchmarks:
        present = _present(benchmark, store)
        wanted = _wanted(benchmark, tier, languages, present if skip or benchmark.data.open else None)
        if benchmark.data.open and languages is None:
            wanted = [language for language in wanted if language in present]
        units += [Unit(benchmark, language) for language in wanted if language in present]
        absent = [language for language in wanted if language not in present]
        if not present and not wanted and languages is None:
            absent = list(benchmark.languages)
        if absent:
            missing.append(_describe(benchmark, absent, store))
    if missing and not skip:
        raise UserError(
            "data is missing:\n  "
            + "\n  ".join(missing)
            + "\nfetch it, or skip these languages with --skip-missing"
        )
    if not units and not theirs:
        raise UserError("nothing to run: " + ("; ".join(missing) if missing else "no language was chosen"))
    return Plan(tuple(units), theirs, tuple(missing))


def _present(benchmark: Benchmark, store: Store) -> Collection[str]:
    if isinstance(store, HubStore) and benchmark.data.repository and not benchmark.data.open:
        # The hub has all of them; checking each would take an hour.
        return benchmark.languages
    return {benchmark.label(code): None for code in available(store, benchmark.data)}


def _wanted(
    benchmark: Benchmark, tier: Tier, languages: Collection[str] | None, present: Collection[str] | None
) -> list[str]:
    """Languages to run; if a tier takes only some, they are chosen from `present`."""
    if languages is not None:
        return [
            label for label in benchmark.languages if label in languages or benchmark.code(label) in languages
        ]
    candidates = benchmark.languages if present is None else [n for n in benchmark.languages if n in present]
    place = {code: number for number, code in enumerate(language_order())}
    if tier.only:
        return [label for label in candidates if benchmark.code(label) in place]
    if tier.languages is None:
        return list(benchmark.languages)
    return sorted(candidates, key=lambda label: (place.get(benchmark.code(label), len(place)), label))[
        : tier.languages
    ]


def _describe(benchmark: Benchmark, absent: Sequence[str], store: Store) -> str:
    source = benchmark.data
    shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    how = f"; {source.obtain}" if source.obtain else ""
    return f"{benchmark.name}: {shown} (looked in {store.describe(source)}{how})"
