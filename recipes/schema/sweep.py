"""Sweeps: one run, tried with different values for some of its keys."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section

__all__ = ["Constraint", "Metric", "Parameter", "Sweep", "Value"]

Value = bool | int | float | str


class Parameter(Section):
    """What a key of the recipe may be: one of `values`, or a number between `low` and `high`. Under any other name: one
    of several `settings`."""

    values: list[Value] | None = None
    """Values to choose from."""
    settings: dict[str, dict[str, Value]] | None = None
    """Named choices that each set several keys, e.g. `{small: {batch.global: 512, schedule.steps: 1000}, ...}`."""
    low: float | None = None
    """Smallest number."""
    high: float | None = None
    """Largest number."""
    log: bool = False
    """Spread numbers evenly on a logarithmic scale, which suits learning rates."""
    integer: bool = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = (self.values, self.settings, self.low if self.low is not None else self.high)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("give one of values, settings, or low and high")
        if self.choices is not None and not self.choices:
            raise ValueError("there is nothing to choose from")
        if self.values is not None and len(set(map(str, self.values))) < len(self.values):
            raise ValueError(f"values has repetitions: {self.values}")
        if self.choices is None:
            if self.low is None or self.high is None or not self.low < self.high:
                raise ValueError(f"low ({self.low}) must be below high ({self.high})")
            if self.log and self.low <= 0:
                raise ValueError(f"log needs numbers above 0, low is {self.low}")
        return self

    @property
    def choices(self) -> list[Value] | None:
        """The choices; None for a number between bounds."""
        return list(self.settings) if self.settings is not None else self.values


class Metric(Section):
    """A number that a trial logs."""

    metric: str = "validation"
    """`validation`, the mean of the groups' losses at the last validation; `evaluation`, a score of the exported model;
    or a column of `metrics.jsonl` at the last step, e.g. `loss` or `tokens_per_second_per_gpu`."""
    groups: list[str] = Field(default_factory=lambda: ["*"])
    """With `validation`: groups to average, by name or pattern (`*`). With `evaluation`: languages."""
    benchmark: str | None = None
    """With `evaluation`: benchmark in `results.parquet`, by name or pattern, e.g. `heldout/monolingual`."""
    score: str | None = None
    """With `evaluation`: its score, e.g. `bits_per_byte` or `accuracy`."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        named = self.benchmark is not None and self.score is not None
        if (self.metric == "evaluation") != named:
            raise ValueError("benchmark and score go with metric: evaluation, which needs both")
        return self


class Constraint(Metric):
    """A limit that a trial must respect to be considered."""

    at_most: float | None = None
    """Largest value allowed."""
    at_least: float | None = None
    """Smallest value allowed."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("give at_most or at_least")
        return self


class Sweep(Section):
    """A search over keys of a recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the sweep and of its folder in `<paths.runs>`."""
    description: str = ""
    """What the sweep is for, in one line."""
    run: str
    """The run that is varied: a name in recipes/runs or a path of a YAML file."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys set in every trial, e.g. `schedule.steps: 500`."""
    parameters: dict[str, Parameter]
    """Keys to vary, dotted, e.g. `schedule.learning_rate`, or whole sections, by the names of their files, e.g.
    `precision`."""
    search: Literal["grid", "random", "tpe", "cmaes", "gp"] = "grid"
    """`grid`: all combinations of `values`; `random`: independent draws; the others are Optuna's samplers, which learn
    from finished trials (`pip install emma-recipes[sweep]`)."""
    trials: int | None = Field(None, gt=0)
    """Number of trials; a grid has as many as there are combinations."""
    seed: int = Field(0, ge=0)
    """Seed of the search."""
    concurrent: int = Field(4, gt=0)
    """Trials that may run at the same time."""
    objective: Metric = Metric()
    """What is optimised."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether lower or higher is better."""
    constraints: list[Constraint] = Field(default_factory=list)
    """Limits that a trial must respect to be considered."""
    pruning: bool | Literal["median", "asha"] = False
    """Stop trials early, by their validations (Optuna's samplers). `median` (or true): what is worse than the median of
    the others at the same step. `asha`: asynchronous successive halving, which lets the best `1 / reduction` go on each
    time the steps have grown by `reduction`."""
    reduction: int = Field(3, ge=2)
    """Reduction factor of `asha`."""

    @property
    def evaluates(self) -> bool:
        """Whether trials are exported and evaluated once they are trained."""
        return any(metric.metric == "evaluation" for metric in (self.objective, *self.constraints))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        set_keys = [
            key
            for p in self.parameters.values()
            for setting in (p.settings or {}).values()
            for key in setting
        ]
        if twice := sorted(set(set_keys) & (self.parameters.keys() | self.overrides.keys())):
            raise ValueError(f"{twice[0]} is in settings and elsewhere; keep one")
        if not self.parameters:
            raise ValueError("parameters is empty")
        if both := sorted(self.parameters.keys() & self.overrides.keys()):
            raise ValueError(f"{both[0]} is in parameters and in overrides; keep one")
        for key, parameter in self.parameters.items():
            if self.search == "grid" and parameter.choices is None:
                raise ValueError(
                    f"parameters.{key}: a grid needs values; use another search for low and high"
                )
        if (self.search == "grid") != (self.trials is None):
            raise ValueError("trials goes with every search but grid, which tries all combinations")
        if self.pruning and self.evaluates:
            raise ValueError(
                "pruning needs an objective, and constraints, that a trial has on the way; an evaluation comes at its end"
            )
        if self.pruning and self.search in ("grid", "random"):
            raise ValueError(f"pruning needs one of Optuna's samplers, search is {self.search}")
        return self
