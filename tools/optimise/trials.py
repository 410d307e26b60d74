"""What the trials of a sweep measured: shares as built, bits per byte of every validation group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.load import load_recipe
from emma.tools.mix.layout import MixInfo, read_mix
from emma.tools.optimise.levers import Lever
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Trials", "read_trials"]


@dataclass(frozen=True)
class Trials:
    """Results of a sweep's trials.

    Attributes:
        names: of those with a result, in the sweep's order; `<mix>-<number>`.
        seeds: of their mixes.
        shares: as built [trials, levers].
        losses: bits per byte [trials, groups].
        groups: names of the validation groups.
        store: fingerprints of the store's components.
        missing: trials without a result yet.
        diverged: trials whose losses are not finite.
    """

    names: list[str]
    seeds: list[int]
    shares: np.ndarray
    losses: np.ndarray
    groups: list[str]
    store: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)

    def of(self, mix: str) -> np.ndarray:
        """Places of the trials of a mix, e.g. `recipe`."""
        return np.array([n for n, name in enumerate(self.names) if name.rpartition("-")[0] == mix], int)

    def table(self, levers: Sequence[Lever]) -> pa.Table:
        """One row per trial: `trial`, `seed`, `share <lever>` and `bits <group>`."""
        columns: dict[str, Any] = {"trial": self.names, "seed": self.seeds}
        columns |= {f"share {lever.name}": self.shares[:, place] for place, lever in enumerate(levers)}
        columns |= {f"bits {name}": self.losses[:, place] for place, name in enumerate(self.groups)}
        return pa.table(columns)


def read_trials(folder: Path, names: Sequence[str], levers: Sequence[Lever], groups: Sequence[str]) -> Trials:
    """Reads the trials of a sweep.

    Args:
        folder: of the sweep.
        names: of its trials, in their order.
        levers: of the mix.
        groups: validation groups to read.

    Raises:
        UserError: trials were judged by other documents or read another store than the others, or lack a group.
    """
    found: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
    missing, diverged = [], []
    reference: MixInfo | None = None
    for number, name in enumerate(names):
        run = RunFolder(folder / f"trial-{number:04d}")
        facts = _facts(run.path, name)
        losses = None if facts is None else _last_losses(run, int(facts["steps"]))
        if losses is None:
            missing.append(name)
            continue
        mix = read_mix(load_recipe(run.path).mix_folder)
        if absent := [group for group in groups if group not in losses or group not in mix.groups]:
            raise UserError(
                f"{run.metrics_file}: has no validation group {absent[0]}. Fix: remove {run.path}"
            )
        reference = reference or mix
        _same(reference, mix)
        nats = [value for group in groups if (value := losses[group]) is not None and math.isfinite(value)]
        if len(nats) < len(groups):
            diverged.append(name)
            continue
        # Nats a token become bits a byte: groups are compared with one another, and tokens are of different lengths.
        bits = [
            value / math.log(2) / mix.groups[group]["bytes_per_token"]
            for group, value in zip(groups, nats, strict=True)
        ]
        found[name] = (mix.seed, _built_shares(mix, levers), np.array(bits))
    rows = list(found.values())
    return Trials(
        list(found),
        [seed for seed, _, _ in rows],
        np.array([shares for _, shares, _ in rows]).reshape(len(rows), len(levers)),
        np.array([bits for _, _, bits in rows]).reshape(len(rows), len(groups)),
        list(groups),
        {} if reference is None else reference.components,
        missing,
        diverged,
    )


def _facts(run: Path, name: str) -> Mapping[str, Any] | None:
    if not (run / "trial.json").is_file():
        return None
    facts: Mapping[str, Any] = read_json(run / "trial.json")
    if facts["parameters"].get("mix") != name:
        raise UserError(
            f"{run / 'trial.json'}: is the trial {facts['parameters'].get('mix')}, but the sweep's is {name}. Fix: remove "
            "the folder of the sweep"
        )
    return facts


def _last_losses(run: RunFolder, steps: int) -> dict[str, float | None] | None:
    """The validation after the last step of a trial that is done; None before."""
    if run.latest_step() < steps:
        return None
    _, validations = read_metrics(run.metrics_file)
    if not validations or validations[-1]["step"] != steps:
        raise UserError(
            f"{run.metrics_file}: has no validation after step {steps}, the last. Fix: set validation.interval in "
            "proxy.overrides to a divisor of schedule.steps, and remove this trial"
        )
    last: dict[str, float | None] = validations[-1]["validation"]
    return last


def _same(first: MixInfo, mix: MixInfo) -> None:
    if mix.components != first.components:
        raise UserError(
            f"{mix.folder}: was built from another store than {first.folder}; losses cannot be compared. Fix: remove the "
            "sweep's folder and run it again"
        )
    if mix.groups != first.groups:
        raise UserError(
            f"{mix.folder}: its validation groups hold other documents than those of {first.folder}"
        )


def _built_shares(mix: MixInfo, levers: Sequence[Lever]) -> np.ndarray:
    table = pq.read_table(mix.folder / "plan.parquet", columns=["component", "category", "built_tokens"])
    tokens = np.zeros(len(levers))
    places = {(lever.component, lever.category): place for place, lever in enumerate(levers)}
    for row in table.to_pylist():
        place = places.get((row["component"], row["category"]), places.get((row["component"], None)))
        if place is not None:
            tokens[place] += row["built_tokens"]
    return np.asarray(tokens / tokens.sum())
