"""Benchmarks whose answers are programs: runs them in sandboxes, and estimates pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import Benchmark
from emma.tools.evaluation.benchmarks.items import Item, program_of
from emma.tools.evaluation.benchmarks.scores import Response, Score, mean_score

if TYPE_CHECKING:
    from emma.tools.evaluation.benchmarks.stores import Store
    from emma.tools.evaluation.benchmarks.units import Plan
    from emma.tools.evaluation.sandbox.toolchains import Executor

__all__ = ["facts_of_programs", "open_executor", "pass_at_k", "run_programs"]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k programs passes (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Args:
        samples: programs that were run for the item.
        correct: those of them that passed.
        k: at most `samples`.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} in {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def run_programs(
    benchmark: Benchmark,
    language: str,
    items: Sequence[Item],
    responses: Sequence[Response],
    executor: Executor | None,
) -> tuple[list[Response], dict[str, Score]]:
    """Runs the programs of all answers.

    Returns:
        The responses with how each program ended, and the scores.

    Raises:
        UserError: there is no executor, a metric is unknown, or an item lacks a field.
    """
    if executor is None or benchmark.program is None:
        raise UserError(f"{benchmark.name}: its programs need a sandbox, and none was opened")
    code = benchmark.code(language)
    programs = [
        program_of(benchmark, code, item, text)
        for item, response in zip(items, responses, strict=True)
        for text in response.texts
    ]
    ran = iter(executor.run(benchmark.program.toolchain, programs))
    done, correct, stopped, empty = [], [], [], []
    for response in responses:
        mine = [next(ran) for _ in response.texts]
        done.append(replace(response, outcomes=tuple(run.describe() for run in mine)))
        correct.append(sum(run.passed for run in mine))
        stopped.append(sum(run.outcome.stopped in ("time", "memory") for run in mine) / len(mine))
        empty.append(sum(not text.strip() for text in response.texts) / len(mine))
    scores = {}
    for name in benchmark.metrics:
        if name.startswith("pass@"):
            k = int(name.removeprefix("pass@"))
            scores[name] = mean_score([pass_at_k(benchmark.samples, count, k) for count in correct])
        elif name == "stopped_rate":
            scores[name] = mean_score(stopped)
        elif name == "empty_rate":
            scores[name] = mean_score(empty)
        else:
            raise UserError(
                f"{benchmark.name}: no metric {name} for programs; known metrics: pass@N, stopped_rate, empty_rate"
            )
    return done, scores


def facts_of_programs(benchmark: Benchmark, executor: Executor | None) -> dict[str, Any]:
    """What determines the results of a benchmark's programs, under the key `program`; empty if it has none."""
    if benchmark.program is None:
        return {}
    if executor is None:
        raise UserError(f"{benchmark.name}: its programs need a sandbox, and none was opened")
    return {"program": executor.facts(benchmark.program.toolchain)}


def open_executor(plan: Plan, store: Store, *, skip: bool) -> tuple[Executor | None, Plan]:
    """An executor for a plan's programs, proven and with all their toolchains tried; None if it has no programs.

    Args:
        plan: what will be run.
        store: where toolchains' further files are.
        skip: leave out, and name in `missing`, what cannot be run here.

    Returns:
        The executor, and the plan without what is left out.

    Raises:
        UserError: nothing can be isolated here, or a toolchain is missing, and it is not to be skipped; nothing is left.
    """
    programs = {
        unit.benchmark.name: unit.benchmark.program
        for unit in plan.units
        if unit.benchmark.program is not None
    }
    if not programs:
        return None, plan
    from emma.tools.evaluation.sandbox.toolchains import Executor

    executor, problems = None, {}
    try:
        executor = Executor(store.extra)
        lacks = {name: executor.lack(name) for name in {program.toolchain for program in programs.values()}}
        problems = {
            name: f"{name}: toolchain {program.toolchain}: {lack}"
            for name, program in programs.items()
            if (lack := lacks[program.toolchain])
        }
        if problems and not skip:
            raise UserError(
                "programs cannot be run:\n  "
                + "\n  ".join(problems.values())
                + "\ninstall what is missing (recipes/evaluation/programs.yaml says what a toolchain needs), or leave "
                "these benchmarks out with --skip-missing"
            )
    except UserError as error:
        if not skip:
            raise
        problems = {name: f"{name}: {error}" for name in programs}
    units = tuple(unit for unit in plan.units if unit.benchmark.name not in problems)
    if not units and not plan.harness:
        raise UserError("nothing to run: " + "; ".join(problems.values()))
    return executor, replace(plan, units=units, missing=(*plan.missing, *problems.values()))
