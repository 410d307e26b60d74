"""Sweeps in which an Optuna sampler chooses each trial, over a journal file that all jobs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from emma.base.errors import UserError
from emma.base.extras import install_command
from emma.base.files import read_json, write_json
from emma.recipes.schema.sweep import Parameter, Value
from emma.slurm.results import objective_at, result_of
from emma.slurm.sweep import SweepFolder, Trial, base_recipe

__all__ = ["ask", "prune", "tell_all"]

_JOURNAL = "optuna.journal"
_VIOLATIONS = "violations"


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError(
            f"this search needs Optuna. Fix: {install_command('optuna')}, or search: random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(folder: SweepFolder, number: int = 0) -> Any:
    optuna = _optuna()
    sweep, samplers = folder.sweep, optuna.samplers
    # Jobs ask at the same time, so each draws from its own stream.
    seed = sweep.seed + number

    def violations(trial: Any) -> Sequence[float]:
        found: list[float] = trial.user_attrs.get(_VIOLATIONS, [0.0] * len(sweep.constraints))
        return found

    limits = violations if sweep.constraints else None
    make: dict[str, Callable[[], Any]] = {
        "tpe": lambda: samplers.TPESampler(seed=seed, constraints_func=limits, constant_liar=True),
        "gp": lambda: samplers.GPSampler(seed=seed, constraints_func=limits),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed),
    }
    backend = optuna.storages.journal.JournalFileBackend(str(folder.path / _JOURNAL))
    return optuna.create_study(
        study_name=sweep.name,
        storage=optuna.storages.JournalStorage(backend),
        direction=sweep.direction,
        sampler=make[sweep.search](),
        pruner=_pruner(folder),
        load_if_exists=True,
    )


def _pruner(folder: SweepFolder) -> Any:
    pruners, sweep = _optuna().pruners, folder.sweep
    if sweep.pruning != "asha":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    # The first rung is the first validation. Optuna's is the asynchronous algorithm: no trial waits for others.
    first = base_recipe(sweep).validation.interval
    return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=sweep.reduction)


def ask(folder: SweepFolder, number: int) -> tuple[dict[str, Value], int]:
    """Parameters of a new trial, based on the finished ones' results, and its number in the journal."""
    folder.path.mkdir(parents=True, exist_ok=True)
    tell_all(folder)
    trial = _study(folder, number).ask()
    return {key: _suggest(trial, key, p) for key, p in folder.sweep.parameters.items()}, trial.number


def _suggest(trial: Any, key: str, parameter: Parameter) -> Value:
    if parameter.choices is not None:
        return trial.suggest_categorical(key, parameter.choices)
    low, high = float(parameter.low or 0), float(parameter.high or 0)
    if parameter.integer:
        return int(trial.suggest_int(key, round(low), round(high), log=parameter.log))
    return float(trial.suggest_float(key, low, high, log=parameter.log))


def tell_all(folder: SweepFolder) -> None:
    """Reports the trials that have ended since the last call."""
    states = _optuna().trial.TrialState
    ended = [trial for trial in folder.trials() if trial.state in ("finished", "pruned", "failed")]
    if not ended:
        return
    study = _study(folder)
    running = {trial.number: trial for trial in study.get_trials(states=(states.RUNNING,))}
    for trial in ended:
        number = read_json(trial.folder / "trial.json")["asked"]
        if number not in running:
            continue
        open_trial = _optuna().trial.Trial(study, running[number]._trial_id)
        result = result_of(folder.sweep, trial)
        open_trial.set_user_attr(_VIOLATIONS, result.violations)
        if trial.state == "pruned":
            study.tell(open_trial, state=states.PRUNED, skip_if_finished=True)
        elif result.objective is None:
            study.tell(open_trial, state=states.FAIL, skip_if_finished=True)
        else:
            study.tell(open_trial, result.objective, skip_if_finished=True)


def prune(folder: SweepFolder, trial: Trial) -> bool:
    """Reports a running trial's validations; returns whether it should stop, noting that in `trial.json`."""
    states = _optuna().trial.TrialState
    file = trial.folder / "trial.json"
    facts = read_json(file)
    study = _study(folder)
    running = {each.number: each for each in study.get_trials(states=(states.RUNNING,))}
    if facts["asked"] not in running:
        return False
    frozen = running[facts["asked"]]
    open_trial = _optuna().trial.Trial(study, frozen._trial_id)
    for step, value in objective_at(folder.sweep, trial.folder).items():
        if step not in frozen.intermediate_values:
            open_trial.report(value, step)
    if not open_trial.should_prune():
        return False
    write_json(file, {**facts, "pruned": max(objective_at(folder.sweep, trial.folder))})
    return True
