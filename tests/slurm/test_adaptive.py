"""Sweeps that learn from their trials, on Optuna's real samplers and a shared journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emma.base.files import read_json
from emma.slurm.adaptive import prune
from emma.slurm.link import begin as begin_link
from emma.slurm.results import best, results
from emma.slurm.submit_sweep import open_sweep
from emma.slurm.sweep import SweepFolder
from emma.slurm.trial import begin, watch
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.conftest import MakeRecipe
from tests.slurm.test_sweep import write
from tests.tools.runs.test_checkpoints import save

optuna = pytest.importorskip("optuna")

ADAPTIVE: dict[str, Any] = {
    "parameters": {"schedule.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    "search": "tpe",
    "trials": 12,
    "constraints": [],
    "objective": {"metric": "validation"},
    "pruning": True,
}


@pytest.fixture
def folder(make_recipe: MakeRecipe, tmp_path: Path) -> SweepFolder:
    make_recipe()
    opened = open_sweep(write(tmp_path, **ADAPTIVE))
    opened.write()
    return opened


def validate(run: RunFolder, step: int, loss: float) -> None:
    append_metrics(run.metrics_file, {"step": step, "validation": {"all": loss}})


def test_the_sampler_learns_from_finished_trials(folder: SweepFolder) -> None:
    import math

    for number in range(12):
        run = RunFolder(begin(folder.path, number))
        rate = read_json(run.path / "trial.json")["parameters"]["schedule.learning_rate"]
        assert 1e-4 <= rate <= 1e-2
        validate(run, 10, (math.log10(rate) + 3) ** 2)
        save(run.checkpoints, 10)
    found = results(folder)
    winner = best(folder.sweep, found)
    assert winner is not None and (winner.objective or 1) < 0.1
    begin(folder.path, 11)
    study = optuna.load_study(
        study_name=folder.sweep.name,
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder.path / "optuna.journal"))
        ),
    )
    told = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(study.trials) == 12 and len(told) == 11, "the last one is told when the next one asks"


def test_a_trial_that_is_begun_again_keeps_its_parameters(folder: SweepFolder) -> None:
    first = read_json(begin(folder.path, 0) / "trial.json")
    assert read_json(begin(folder.path, 0) / "trial.json") == first
    assert begin(folder.path, 1) != begin(folder.path, 0)


def test_a_trial_that_falls_behind_is_stopped_and_counts_as_done(folder: SweepFolder) -> None:
    for number in range(5):
        run = RunFolder(begin(folder.path, number))
        for step in (2, 4, 6, 8, 10):
            validate(run, step, 1.0)
        watch_once(folder, number)
        save(run.checkpoints, 10)
    run = RunFolder(begin(folder.path, 5))
    for step in (2, 4, 6):
        validate(run, step, 9.0)
    watch(folder.path, 5, seconds=0.1)
    assert run.stop_request.exists()
    trial = folder.trial(5)
    assert trial.state == "pruned" and trial.done and begin_link(trial.folder, []) is None


def watch_once(folder: SweepFolder, number: int) -> None:
    from emma.slurm.adaptive import prune

    assert not prune(folder, folder.trial(number))


def reference(values: dict[int, float], rung: int, value: float, reduction: int) -> bool:
    """Whether asynchronous successive halving lets a trial go on at a rung: it is among the best `1 / reduction` of those
    that have reached it, or the best of all while they are fewer (Li et al. 2020, algorithm 2)."""
    reached = sorted([*values.values(), value])
    return value <= reached[max(len(reached) // reduction, 1) - 1]


def test_asha_decides_as_the_algorithm_says(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    import random

    make_recipe()
    opened = open_sweep(
        write(tmp_path, **{**ADAPTIVE, "pruning": "asha", "reduction": 2}), ["validation.interval=1"]
    )
    opened.write()
    numbers = random.Random(1)
    rungs: dict[int, dict[int, float]] = {1: {}, 2: {}, 4: {}, 8: {}}
    stopped = 0
    for number in range(12):
        run = RunFolder(begin(opened.path, number))
        level = numbers.uniform(1, 9)
        for step in range(1, 9):
            value = level + numbers.uniform(-1, 1)
            validate(run, step, value)
            pruned = prune(opened, opened.trial(number))
            if step not in rungs:
                assert not pruned, "between rungs nothing is decided"
                continue
            assert pruned != reference(rungs[step], step, value, 2), (number, step)
            rungs[step][number] = value
            if pruned:
                stopped += 1
                break
        else:
            save(run.checkpoints, 10)
    assert 3 < stopped < 12


def test_the_median_stays_what_true_means(folder: SweepFolder) -> None:
    from emma.slurm.adaptive import _pruner

    assert isinstance(_pruner(folder), optuna.pruners.MedianPruner)
