"""A sweep on this machine: the same folders and files as with Slurm, with processes in place of jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import SimpleQueue

from emma.base.errors import UserError
from emma.base.processes import follow_parent
from emma.base.writers import sole_writer
from emma.slurm.checks import check_base, check_inputs, check_paths
from emma.slurm.history import History
from emma.slurm.results import Result
from emma.slurm.results_page import write_results
from emma.slurm.space import check_room
from emma.slurm.stages import emma_program, stages_between
from emma.slurm.submit_sweep import recipes_of
from emma.slurm.sweep import SweepFolder
from emma.slurm.trial import begin, evaluate, watch
from emma.tools.plan.alternatives import check_fits
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.forked import forking, is_alone
from emma.tools.training.launch import rank_environment
from emma.tools.training.proven import refuse_unproven

__all__ = ["plan_local", "run_local"]


def plan_local(
    folder: SweepFolder, *, retry_failed: bool = False, concurrent: int | None = None
) -> tuple[list[int], int]:
    """Trials that have no result yet, and how many run at once.

    Raises:
        UserError: a trial's recipe cannot work here, or its inputs are missing.
    """
    wanted = {"waiting", "begun", *(["failed"] if retry_failed else [])}
    numbers = [trial.number for trial in folder.trials() if trial.state in wanted]
    recipes = recipes_of(folder)
    recipe, train = recipes[0], stages_between("train", "train")
    if recipe.cluster.nodes > 1 or recipe.cluster.launcher != "torchrun":
        raise UserError(
            f"{folder.sweep.name}: its trials run on {recipe.cluster.nodes} nodes by {recipe.cluster.launcher}, which is no "
            "one machine. Fix: leave out --local, or add cluster.nodes=1 cluster.launcher=torchrun"
        )
    for each in recipes:
        check_fits(each)
    refuse_unproven(recipe)
    check_inputs(recipe, stages_between("mix", "train"))
    check_base(recipe, train)
    check_paths(recipe)
    check_room(recipe, train, runs=len(numbers))
    at_once = concurrent or folder.sweep.concurrent
    if recipe.cluster.device != "cpu":
        at_once = min(at_once, _visible_gpus() // recipe.cluster.gpus_per_node)
        if not at_once:
            raise UserError(
                f"{folder.sweep.name}: a trial needs {recipe.cluster.gpus_per_node} GPUs, this machine shows {_visible_gpus()}. "
                "Fix: lower cluster.gpus_per_node, or leave out --local"
            )
    return numbers, at_once


def _visible_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def run_local(folder: SweepFolder, numbers: Sequence[int], at_once: int) -> list[Result]:
    """Runs trials, `at_once` at a time, and writes the sweep's results.

    A trial that fails does not end the others. An interrupt reaches all processes, and the next call continues.

    Raises:
        UserError: the folder holds another sweep, or another process runs it.
    """
    folder.write()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(at_once):
        slots.put(slot)
    with sole_writer(folder.path, inside=True):
        for number in numbers:
            if folder.trial(number).state == "failed":
                # Resets the count of attempts without progress.
                History(folder.folder(number)).add(
                    "submitted", stage="train", link="trial", job=None, after=""
                )
        with _ranks(folder, len(numbers)) as variables, ThreadPoolExecutor(at_once) as pool:
            try:
                for _ in pool.map(lambda number: _run(folder, number, slots, variables), numbers):
                    pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return write_results(folder)


def _ranks(folder: SweepFolder, trials: int) -> AbstractContextManager[dict[str, str]]:
    """What the environment of trainings needs, for as long as they run: on a CPU, several trials are forked from one process
    that has imported torch and Megatron."""
    recipe = recipes_of(folder)[0]
    return forking(rank_environment(recipe)) if trials > 1 and is_alone(recipe) else nullcontext({})


# Optuna's samplers are asked one at a time: a trial's values may depend on the results so far.
_asking = threading.Lock()


def _run(folder: SweepFolder, number: int, slots: SimpleQueue[int], variables: Mapping[str, str]) -> None:
    slot = slots.get()
    try:
        with _asking:
            run = begin(folder.path, number)
        log = run / "logs" / "local.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        history = History(run)
        with log.open("ab") as output:
            print(f"trial {number}: {log}", file=sys.stderr, flush=True)
            code = _emma(["mix", "build", str(run)], output, {})
            if code:
                _failed(history, number, f"emma mix build ended with exit code {code}")
                return
            step = RunFolder(run).latest_step()
            history.add("began", job=None, restart=0, launch=0, step=step, nodes=None)
            watcher = None
            if folder.sweep.pruning:
                watcher = threading.Thread(target=watch, args=(folder.path, number), daemon=True)
                watcher.start()
            code = _emma(["train", str(run)], output, {**variables, **_devices(folder, number, slot)})
            history.add(
                "ended", job=None, restart=0, launch=0, step=RunFolder(run).latest_step(), exit_code=code
            )
            if code and folder.trial(number).state != "pruned":
                _failed(history, number, f"emma train ended with exit code {code}")
                return
        try:
            evaluate(folder.path, number)
        except UserError as error:
            _failed(history, number, str(error))
    finally:
        slots.put(slot)


def _failed(history: History, number: int, why: str) -> None:
    """Notes that a trial is given up: here nobody is waiting to try it again by itself."""
    history.add("given up", why=why)
    print(f"trial {number}: {why}; see {history.run}/logs/", file=sys.stderr, flush=True)


def _devices(folder: SweepFolder, number: int, slot: int) -> dict[str, str]:
    """The GPUs of a trial: each slot has its own."""
    from emma.recipes.load import load_recipe

    cluster = load_recipe(folder.folder(number)).cluster
    if cluster.device == "cpu":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(index) for index in range(_visible_gpus())]
    own = names[slot * cluster.gpus_per_node : (slot + 1) * cluster.gpus_per_node]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _emma(words: list[str], output: object, environment: dict[str, str]) -> int:
    command = [emma_program(), *words]
    return subprocess.run(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        preexec_fn=follow_parent(),  # a killed sweep leaves no training behind
        env={**os.environ, **environment},
        check=False,  # type: ignore[call-overload]
    ).returncode
