"""A run on the tiny store whose proxies are trained by a formula: everything of an optimisation but the training is real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from emma.recipes.load import load_optimisation, load_recipe
from emma.slurm.submit_sweep import open_sweep
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings
from emma.tools.optimise.study import Study
from emma.tools.optimise.trials import _built_shares
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.small_recipe import write_small_run
from tests.tiny_mix import TinyMix, make_tiny_mix
from tests.tools.runs.test_checkpoints import save

NOISE = 0.001
SETTINGS: dict[str, Any] = {
    "proxy": {"overrides": {"schedule.steps": 5, "schedule.warmup_steps": 1}},
    "proxies": 8,
    "replicates": 3,
    "objective": {"groups": ["category-monolingual-low"]},
    "limits": [{"group": "*", "worse": 0.02}],
    "check": {"seeds": 2, "compare": []},
}
FALLS = {
    "category-monolingual-low": 0,
    "language-swh_Latn": 1,
    "category-monolingual-high": 1,
    "component-bilingual": 2,
}
"""The lever whose share each group's loss falls with, in the order of the plan's levers by name."""


@dataclass
class Trainer:
    """Stands in for training: losses are a power of the group's own share, with noise by the mix's seed.

    Attributes:
        gain: exponent; 0: shares change nothing.
        stop: raise KeyboardInterrupt after so many trials, as a killed command would leave them.
        diverge: trials whose losses are not numbers.
        trained: names of the trials that were.
    """

    gain: float = 0.2
    stop: int = 10**9
    diverge: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()

    def __call__(self, sweep: Path) -> None:
        folder = open_sweep(str(sweep))
        folder.write()
        for trial in folder.trials():
            if trial.state == "finished":
                continue
            if len(self.trained) >= self.stop:
                raise KeyboardInterrupt
            assert trial.parameters is not None
            run = RunFolder(folder.begin(trial.number, trial.parameters))
            recipe = load_recipe(run.path)
            mix = build_mix(MixSettings.of_recipe(recipe))
            name = str(trial.parameters["mix"])
            losses = self.losses(mix, recipe.data.mix.seed, name)
            append_metrics(run.metrics_file, {"step": recipe.schedule.steps, "validation": losses})
            save(run.checkpoints, recipe.schedule.steps)
            self.trained = (*self.trained, f"{sweep.stem[:5]} {name}")

    def losses(self, mix: Any, seed: int, name: str) -> dict[str, float | None]:
        from emma.tools.optimise.levers import Lever

        nothing = np.zeros(0)
        levers = [
            Lever("monolingual", "low", nothing, nothing, 0, True),
            Lever("monolingual", "high", nothing, nothing, 0, True),
            Lever("bilingual", None, nothing, nothing, 0, False),
        ]
        shares = _built_shares(mix, levers)
        random = np.random.default_rng([seed, *name.encode()])
        found: dict[str, float | None] = {}
        for group in mix.groups:
            own = FALLS.get(group, 2)
            noise = 1 + NOISE * float(random.normal())
            nats = np.log(2) * mix.groups[group]["bytes_per_token"]
            loss = (1.0 + (shares[own] + 0.05 * (1 - shares[own])) ** -self.gain) * nats * noise
            found[group] = None if name in self.diverge else float(loss)
        return found


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> TinyMix:
    return make_tiny_mix(tmp_path_factory.mktemp("optimise"), samples=40, sequence_length=32)


MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(tiny_store: TinyMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStudy:
    """A study of a small run on the tiny store; keyword arguments replace keys of its settings."""
    monkeypatch.chdir(tmp_path)

    def make(name: str = "asked", overrides: tuple[str, ...] = (), **changes: Any) -> Study:
        data = tiny_store.data.model_dump(mode="json", by_alias=True)
        path = write_small_run(tmp_path, data=data, tokenizer=tiny_store.tokenizer)
        settings = tmp_path / f"{name}.yaml"
        YAML(typ="safe").dump({**SETTINGS, **changes}, settings)
        store = f"paths.store={tiny_store.store}"
        # Long enough that whole documents come near the shares that were asked for.
        return Study(
            str(path),
            (store, "schedule.steps=400", "batch.global=64", *overrides),
            load_optimisation(str(settings)),
        )

    return make
