"""Carries out `emma evaluate run --tier ...`, from options to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.backends import ModelSettings
from emma.tools.evaluation.benchmarks.definitions import (
    Tier,
    get_benchmark,
    get_tier,
    resolve_names,
    spbleu_model,
)
from emma.tools.evaluation.benchmarks.harness import PREFIX, expand, harness_units
from emma.tools.evaluation.benchmarks.metrics import NEEDS_SPBLEU, Resources, bertscore_folder
from emma.tools.evaluation.benchmarks.programs import open_executor
from emma.tools.evaluation.benchmarks.records import Finished
from emma.tools.evaluation.benchmarks.run import Runner, RunSettings
from emma.tools.evaluation.benchmarks.stores import Store, open_store
from emma.tools.evaluation.benchmarks.units import Plan, plan_units
from emma.tools.evaluation.publish import publish_rows
from emma.tools.evaluation.results import Result
from emma.tools.evaluation.targets import Target

if TYPE_CHECKING:
    from emma.tools.evaluation.sandbox.toolchains import Executor

__all__ = ["HELDOUT", "Outcome", "Prepared", "Request", "notes", "parse_shots", "prepare", "run_models"]

HELDOUT = "heldout"
"""Name for the held-out text in a list of benchmarks."""


@dataclass(frozen=True)
class Request:
    """The user's request; see `emma evaluate run --help`."""

    tier: str | None = None
    benchmarks: tuple[str, ...] = ()
    languages: frozenset[str] | None = None
    mirror: Path | None = None
    limit: int | None = None
    shots: tuple[str, ...] = ()
    skip_missing: bool = False
    shard: tuple[int, int] | None = None
    spbleu_path: Path | None = None
    spbleu_other: bool = False
    bertscore: Path | None = None
    model: ModelSettings = field(default_factory=ModelSettings)


@dataclass(frozen=True)
class Prepared:
    """A checked request, with its data, units, settings and resources."""

    request: Request
    store: Store
    plan: Plan
    settings: RunSettings
    resources: Resources

    def runner(self, target: Target, output: Path) -> Runner:
        """A runner for one model."""
        return Runner(target, self.store, output, self.request.model, self.settings, self.resources)


@dataclass(frozen=True)
class Outcome:
    """Finished units, and all rows of the table (none after a shard, which writes no table)."""

    finished: list[Finished]
    rows: list[Result]


def prepare(request: Request) -> Prepared:
    """Checks a request against the data.

    Raises:
        UserError: a name, an option or the data is wrong, or spBLEU's model is missing.
    """
    tier = get_tier(request.tier) if request.tier else Tier(name="given")
    asked = [name for name in request.benchmarks if name != HELDOUT]
    names = resolve_names(expand(asked or tier.benchmarks))
    store = open_store(request.mirror)
    plan = plan_units(names, store, tier, request.languages, skip_missing=request.skip_missing)
    executor, plan = open_executor(plan, store, skip=request.skip_missing or tier.missing == "skip")
    shots = parse_shots(request.shots)
    if idle := shots.keys() - names - {unit.benchmark_name for unit in plan.harness}:
        raise UserError(f"--shots {', '.join(sorted(idle))}: not among the benchmarks of this run")
    settings = RunSettings(limit=request.limit or tier.limit, max_new_tokens=tier.max_new_tokens, shots=shots)
    return Prepared(request, store, plan, settings, _resources(request, store, plan, executor))


def parse_shots(values: Sequence[str]) -> dict[str, int]:
    """Parses the `NAME=N` values of --shots.

    Raises:
        UserError: a value has another form, or names a benchmark that is unknown or has no examples.
    """
    shots: dict[str, int] = {}
    for value in values:
        name, _, number = value.partition("=")
        if not number.isdigit():
            raise UserError(f"--shots {value}: must be BENCHMARK=N, e.g. mgsm_direct_emma=0")
        if name.startswith(PREFIX):
            shots |= {unit.benchmark_name: int(number) for unit in harness_units([name])}
            continue
        for resolved in resolve_names([name]):
            if int(number) and not get_benchmark(resolved).shot:
                raise UserError(f"--shots {value}: {resolved} has no template for examples")
            shots[resolved] = int(number)
    return shots


def _resources(request: Request, store: Store, plan: Plan, executor: Executor | None) -> Resources:
    metrics = {metric for unit in plan.units for metric in unit.benchmark.metrics}
    tokenizer = None
    if NEEDS_SPBLEU in metrics:
        from emma.tools.evaluation.benchmarks.translation import find_spbleu_model

        known = spbleu_model()
        mirrored = next(filter(None, map(store.extra, (known.file, *known.also))), None)
        tokenizer = find_spbleu_model(known, request.spbleu_path, mirrored, allow_other=request.spbleu_other)
    encoder = None
    folder = bertscore_folder(request.bertscore)
    if folder is not None and "bertscore" in metrics:
        from emma.tools.evaluation.benchmarks.similarity import BertScore

        encoder = BertScore(folder, device=request.model.device)
    return Resources(tokenizer, encoder, executor)


def notes(prepared: Prepared) -> list[str]:
    """What a user should know before a run starts."""
    plan, resources = prepared.plan, prepared.resources
    metrics = {metric for unit in plan.units for metric in unit.benchmark.metrics}
    found = [f"left out: {line}" for line in plan.missing]
    if resources.spbleu and not resources.spbleu.is_flores200:
        found.append(
            f"spbleu uses another sentencepiece model ({resources.spbleu.signature()}), so it is not spBLEU"
        )
    if "bertscore" in metrics and resources.bertscore is None:
        found.append("bertscore is left out; give its encoder's folder with --bertscore")
    return found


def run_models(
    prepared: Prepared,
    targets: Sequence[tuple[Target, str]],
    output: Path,
    costs: Mapping[str, float] | None = None,
) -> Outcome:
    """Runs the units (or a shard's) for each model, and writes the tables unless only a shard was run.

    Args:
        prepared: the checked request.
        targets: models and their roles (`trained` or `base`).
        output: evaluation folder.
        costs: expected cost of a language by benchmark, by which shards are balanced.
    """
    finished: list[Finished] = []
    rows: list[Result] = []
    models = []
    for target, role in targets:
        runner = prepared.runner(target, output)
        plan = prepared.plan.share(prepared.request.shard, costs)
        done = runner.run([*plan.units, *plan.harness])
        finished += done
        rows += [row for unit in done for row in unit.results(target.model)]
        models.append((target, role, runner.model_sha256))
    if prepared.request.shard is not None:
        return Outcome(finished, [])
    return Outcome(finished, publish_rows(output, rows, models))
