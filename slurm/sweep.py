"""Trials of a sweep: their parameters, recipes, and state. The sweep's folder holds everything:
`<paths.runs>/<sweep>/sweep.yaml`, and one run folder with `trial.json` per trial."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from ruamel.yaml import YAML

from emma.base.errors import UserError
from emma.base.files import atomic_write, read_json, write_json
from emma.recipes.load import load_sweep, write_recipe
from emma.recipes.schema import Recipe
from emma.recipes.schema.sweep import Parameter, Sweep, Value
from emma.slurm.history import History
from emma.slurm.own_template import load_run
from emma.tools.runs.run_folder import RunFolder

__all__ = ["SweepFolder", "Trial", "base_recipe", "design", "trial_name", "with_overrides"]

Parameters = dict[str, Value]


def design(sweep: Sweep) -> list[Parameters] | None:
    """Parameters of every trial of a grid or random search, in order; None if Optuna chooses them one by
    one."""
    if sweep.search == "grid":
        values = [parameter.choices or [] for parameter in sweep.parameters.values()]
        return [dict(zip(sweep.parameters, point, strict=True)) for point in itertools.product(*values)]
    if sweep.search == "random":
        return [_draw(sweep, number) for number in range(sweep.trials or 0)]
    return None


def _draw(sweep: Sweep, number: int) -> Parameters:
    """One random point; trial `number` does not depend on the number of trials."""
    random = np.random.default_rng([sweep.seed, number])
    return {key: _draw_one(parameter, random) for key, parameter in sweep.parameters.items()}


def _draw_one(parameter: Parameter, random: np.random.Generator) -> Value:
    if parameter.choices is not None:
        return parameter.choices[int(random.integers(len(parameter.choices)))]
    low, high = float(parameter.low or 0), float(parameter.high or 0)
    if parameter.log:
        drawn = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        drawn = float(random.uniform(low, high))
    return round(drawn) if parameter.integer else float(f"{drawn:.6g}")


def with_overrides(sweep: Sweep, overrides: Sequence[str]) -> Sweep:
    """The sweep with `section.key=value` overrides set in every trial."""
    from emma.recipes.compose import parse_override

    given = {".".join(key): value for key, value in map(parse_override, overrides)}
    return Sweep.model_validate({**sweep.model_dump(), "overrides": {**sweep.overrides, **given}})


def base_recipe(sweep: Sweep) -> Recipe:
    """The run that the sweep varies, with the overrides of all trials."""
    return load_run(sweep.run, _texts(sweep.overrides))


def trial_name(number: int) -> str:
    """Name of a trial's run folder within its sweep's folder."""
    return f"trial-{number:04d}"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: 0, 1, ...
        folder: its run folder.
        state: `waiting`, `begun`, `finished`, `pruned` or `failed`.
        parameters: None until an adaptive search has chosen them.
    """

    number: int
    folder: Path
    state: str
    parameters: Parameters | None

    @property
    def done(self) -> bool:
        """Whether it has a result."""
        return self.state in ("finished", "pruned")


class SweepFolder:
    """A sweep on disk."""

    def __init__(self, path: Path, sweep: Sweep) -> None:
        self.path, self.sweep = path, sweep

    @classmethod
    def of(cls, sweep: Sweep) -> SweepFolder:
        """The sweep's folder, beside the run folder of its base run."""
        return cls(Path(base_recipe(sweep).paths.runs).absolute() / sweep.name, sweep)

    @classmethod
    def read(cls, path: Path) -> SweepFolder:
        """The sweep in an existing folder."""
        return cls(path, load_sweep(str(path / "sweep.yaml")))

    def write(self) -> None:
        """Writes `sweep.yaml`.

        Raises:
            UserError: the folder holds another sweep.
        """
        file = self.path / "sweep.yaml"
        # How many trials run at once, and where, does not affect the results.
        if file.is_file() and _essence(load_sweep(str(file))) != _essence(self.sweep):
            raise UserError(
                f"{file}: this folder holds another sweep: run, parameters, overrides, search or objective differ. "
                "Fix: give the new sweep another name, or remove the folder"
            )
        with atomic_write(file, "w") as handle:
            yaml = YAML(typ="safe")
            yaml.default_flow_style = False
            # Trials are numbered in the order of the parameters.
            yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
            yaml.dump(self.sweep.model_dump(mode="json"), handle)

    @property
    def count(self) -> int:
        """Number of trials."""
        points = design(self.sweep)
        return len(points) if points is not None else self.sweep.trials or 0

    def folder(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.path / trial_name(number)

    def recipe(self, number: int, parameters: Mapping[str, Value]) -> Recipe:
        """A trial's recipe. Its mix is named after its contents, so trials with the same data share one."""
        chosen: dict[str, Any] = {}
        for key, value in parameters.items():
            settings = self.sweep.parameters[key].settings
            chosen |= {key: value} if settings is None else settings[str(value)]
        texts = _texts({**self.sweep.overrides, **chosen})
        own = [f"name={self.folder(number).name}", f"paths.runs={self.path}"]
        recipe = load_run(self.sweep.run, [*texts, *own])
        content = [
            recipe.data.mix.model_dump(mode="json"),
            recipe.total_samples,
            recipe.batch.sequence_length,
        ]
        digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]
        data = recipe.data.model_copy(update={"name": f"{recipe.data.name}-{digest}"})
        return recipe.model_copy(update={"data": data})

    def trial(self, number: int) -> Trial:
        """State of a trial."""
        folder = self.folder(number)
        points = design(self.sweep)
        parameters = points[number] if points is not None else None
        if not (folder / "trial.json").is_file():
            return Trial(number, folder, "waiting", parameters)
        facts = read_json(folder / "trial.json")
        state = _state(folder, facts)
        if state == "finished" and self.sweep.evaluates and not _evaluated(folder):
            state = "begun"
        return Trial(number, folder, state, facts["parameters"])

    def trials(self) -> list[Trial]:
        """All trials."""
        return [self.trial(number) for number in range(self.count)]

    def begin(self, number: int, parameters: Mapping[str, Value], **facts: Any) -> Path:
        """Writes a trial's `trial.json` and recipe; returns its run folder."""
        folder, recipe = self.folder(number), self.recipe(number, parameters)
        write_recipe(recipe, folder / "recipe.yaml")
        # What determines a trial's state, so that a table of hundreds need not read their recipes.
        limits = {"steps": recipe.schedule.steps, "attempts": recipe.cluster.slurm.attempts}
        write_json(
            folder / "trial.json", {"number": number, "parameters": dict(parameters), **limits, **facts}
        )
        return folder


def _state(folder: Path, facts: Mapping[str, Any]) -> str:
    if facts.get("pruned") is not None:
        return "pruned"
    step = RunFolder(folder).latest_step()
    if step >= facts["steps"]:
        return "finished"
    history = History(folder)
    given_up = history.given_up() or history.attempts_without_progress(step) >= facts["attempts"]
    return "failed" if given_up else "begun"


def _evaluated(folder: Path) -> bool:
    return (folder / "evaluation" / "results.parquet").is_file()


def _essence(sweep: Sweep) -> dict[str, Any]:
    values = sweep.model_dump(mode="json", exclude={"concurrent", "description"})
    values["overrides"] = {
        key: value for key, value in values["overrides"].items() if not key.startswith("cluster")
    }
    # Trials are numbered in the order of the parameters.
    values["parameters"] = list(values["parameters"].items())
    return values


def _texts(values: Mapping[str, Any]) -> list[str]:
    """Overrides as on the command line; JSON is valid YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
