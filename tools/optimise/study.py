"""What an optimisation works on: the run's mix, its levers, the proxies' design, and where everything lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from ruamel.yaml import YAML

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.recipes.compose import ROOT, parse_override
from emma.recipes.load import load_recipe, run_file
from emma.recipes.schema import Recipe
from emma.recipes.schema.optimisation import Optimisation
from emma.tools.laws.law import Repetition
from emma.tools.mix.plan import MixPlan
from emma.tools.mix.prepare import MixSettings, plan_mix
from emma.tools.optimise.levers import Lever, free_levers, keys_of, levers_of, proportional, shares_of

__all__ = ["Study", "Target", "write_sweep"]

_COMPONENTS = "data.mix.components."
_MOST_ROWS = 1 << 17
"""Rows of the sequence that are looked at for mixes within the caps."""
_OWN_KEYS = ("name", "paths.runs", "data.mix.seed", "data.mix.validation.seed", "data.mix.components")
CHECK_SEEDS = 1000
"""Seeds of a check begin so far above the mix's own, which those of the proxies follow."""


@dataclass(frozen=True)
class Target:
    """A run's mix at its budget: recipe, plan, levers, budget in tokens, and what repeated tokens are worth there."""

    recipe: Recipe
    plan: MixPlan
    levers: list[Lever]
    repeats: float

    @classmethod
    def of(cls, recipe: Recipe, repeats: float) -> Target:
        """Plans a run's mix from its store.

        Raises:
            UserError, CheckFailedError: the mix cannot be planned.
        """
        plan = plan_mix(MixSettings.of_recipe(recipe))
        plan.check()
        return cls(recipe, plan, levers_of(recipe.data.mix, plan), repeats)

    @property
    def budget(self) -> int:
        """Tokens of training."""
        return self.plan.tokens

    @property
    def repetition(self) -> Repetition:
        """The value of repeated tokens in this run."""
        return Repetition(self.budget / np.array([lever.held for lever in self.levers]), self.repeats)

    @property
    def caps(self) -> np.ndarray:
        """Largest share of each lever [levers]."""
        return np.array([lever.cap for lever in self.levers]) / self.budget


@dataclass(frozen=True)
class Study:
    """An optimisation of one run.

    Attributes:
        run: as it was named.
        changes: `section.key=value` of the command line, for the run and its proxies.
        settings: which shares are free, and what is to fall.
    """

    run: str
    changes: tuple[str, ...]
    settings: Optimisation

    @cached_property
    def target(self) -> Target:
        """The run itself."""
        return Target.of(load_recipe(self.run, self.changes), self.settings.repeats)

    @cached_property
    def proxy(self) -> Target:
        """The run's own mix in a proxy."""
        target = Target.of(load_recipe(self.run, _texts(self.overrides)), self.settings.repeats)
        own, small = self.target.recipe, target.recipe
        if small.model == own.model and small.total_tokens >= own.total_tokens:
            raise UserError(
                "proxy.overrides: a proxy is as long as the run, and of its size. Fix: give fewer steps (schedule.steps), or a "
                "smaller model of the same tokenizer"
            )
        names = [[lever.name for lever in each.levers] for each in (self.target, target)]
        if names[0] != names[1]:
            raise UserError(
                f"proxy.overrides: the proxies' mix has other parts ({', '.join(names[1])}) than the run's "
                f"({', '.join(names[0])}). Fix: change no component, category or source of the mix there"
            )
        return target

    @property
    def base(self) -> np.ndarray:
        """Shares of the run's own mix [levers]."""
        return shares_of(self.target.levers)

    @property
    def folder(self) -> Path:
        """What is known of this run's shares: `<paths.runs>/<run>-mix`."""
        recipe = self.target.recipe
        return Path(recipe.paths.runs) / f"{recipe.name}-mix"

    @property
    def results(self) -> Path:
        """What these settings make of it."""
        return self.folder / self.settings.name

    @cached_property
    def free(self) -> np.ndarray:
        """Levers that may move [levers]."""
        return free_levers(self.target.levers, self.settings.fixed)

    @property
    def proxies(self) -> int:
        """Number of mixes to train."""
        return self.settings.proxies or max(32, 4 * len(self.target.levers))

    @property
    def least(self) -> int:
        """Mixes without which nothing is fitted."""
        return max(8, int(self.free.sum()) + 3)

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """Keys of every proxy.

        Raises:
            UserError: the settings change what only the design may.
        """
        given = dict(self.settings.proxy.overrides)
        for key in given:
            if any(key == own or key.startswith(f"{own}.") for own in _OWN_KEYS):
                raise UserError(
                    f"proxy.overrides: {key} is set by the design. Fix: remove it (`fixed` keeps shares, `seed` draws others)"
                )
        mix = self.target.recipe.data.mix
        sources = {row.source.language for row in self.target.plan.sources}
        named = {limit.group.removeprefix("language-") for limit in self.settings.limits}
        asked = given.get("data.mix.validation.languages", mix.validation.languages)
        languages = dict.fromkeys([*asked, *sorted(named & sources)])
        # All trials are judged by the same documents, once, at their end.
        own = {
            "data.mix.validation.seed": mix.validation_seed,
            "data.mix.validation.by_category": True,
            "data.mix.validation.by_component": True,
            "data.mix.validation.languages": list(languages),
            "paths.runs": str(self.folder),
        }
        changes = {".".join(key): value for key, value in map(parse_override, self.changes)}
        steps = given.get("schedule.steps", self.target.recipe.schedule.steps)
        judged = {"validation.interval": steps, "validation.at_start": False}
        return {**changes, **judged, **given, **own}

    @cached_property
    def design(self) -> np.ndarray:
        """Shares of the mixes to train [proxies, levers]: around the run's own, log-normal along a scrambled Sobol sequence,
        of which those are left out that the run's caps forbid. More proxies begin with the same ones.

        Raises:
            UserError: the caps leave too few, or too few are asked for.
        """
        from scipy.special import ndtri
        from scipy.stats import qmc

        base, free, spread = self.base, self.free, self.settings.spread
        if self.proxies < self.least:
            raise UserError(
                f"proxies: {self.proxies} mixes say too little of {int(free.sum())} shares. Fix: train at least {self.least}"
            )
        caps = np.minimum(self.target.caps, self.proxy.caps)
        sequence = qmc.Sobol(int(free.sum()), scramble=True, rng=np.random.default_rng(self.settings.seed))
        rows: list[np.ndarray] = []
        looked_at = 0
        while len(rows) < self.proxies and looked_at < _MOST_ROWS:
            points = sequence.random(1024)
            looked_at += len(points)
            shares = np.tile(base, (len(points), 1))
            shares[:, free] *= np.exp(spread * ndtri(np.clip(points, 1e-9, 1 - 1e-9)))
            shares[:, free] *= base[free].sum() / shares[:, free].sum(axis=1, keepdims=True)
            rows.extend(shares[(shares <= caps).all(axis=1)])
        if len(rows) < self.proxies:
            full = ", ".join(lever.name for lever in self.target.levers if lever.capped)
            raise UserError(
                f"the caps leave {len(rows)} of {looked_at:,} mixes, but {self.proxies} are to be trained (at their caps: "
                f"{full or 'none'}). Fix: raise max_epochs, keep those shares (`fixed`), or lower `spread`"
            )
        return np.array(rows[: self.proxies])

    def sweep(self) -> dict[str, Any]:
        """The proxies as a sweep: the run's own mix with several seeds, then the design."""
        seed = self.target.recipe.data.mix.seed
        own = self._keys(self.base)
        settings = {
            f"recipe-{n}": {**own, "data.mix.seed": seed + n} for n in range(self.settings.replicates)
        }
        settings |= {f"mix-{n:03d}": self._keys(shares) for n, shares in enumerate(self.design)}
        return self._sweep(
            "proxies", "mixes around the run's own, and that with several seeds", self.overrides, settings
        )

    def check_sweep(self, mixes: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The proof of a proposal as a sweep: each mix (shares [levers], by name) with seeds that no proxy has seen;
        `proportional` with one."""
        seed = self.target.recipe.data.mix.seed + CHECK_SEEDS
        settings = {}
        for number in range(self.settings.check.seeds):
            for name, shares in mixes.items():
                if name != "proportional" or not number:
                    settings[f"{name}-{number}"] = {**self._keys(shares), "data.mix.seed": seed + number}
        overrides = {**self.overrides, **self.settings.check.overrides}
        return self._sweep("check", "a proposal against the run's own mix, new seeds", overrides, settings)

    def proportional(self) -> np.ndarray:
        """Shares by size."""
        return proportional(self.target.levers, self.target.budget)

    def _keys(self, shares: np.ndarray) -> dict[str, Any]:
        """Keys of a proxy with these shares; none where they are what the proxy's recipe has by itself."""
        proxy = self.proxy
        if np.allclose(shares, shares_of(proxy.levers), rtol=1e-4, atol=0):
            return {}
        keys = keys_of(proxy.levers, shares, proxy.budget)
        return {f"{_COMPONENTS}{key}": float(f"{value:.12g}") for key, value in keys.items()}

    def _sweep(
        self, kind: str, what: str, overrides: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        file = run_file(self.run)
        run = self.run if file.parent == ROOT / "runs" else str(file.absolute())
        common = {**overrides, "validation.groups": self.fitted_groups()}
        # A key that only some mixes set is set in each of them: a sweep has it in one place.
        varied = {key for keys in settings.values() for key in keys} & common.keys()
        shared = {key: common.pop(key) for key in sorted(varied)}
        mixes = {name: {**shared, **keys} for name, keys in settings.items()}
        content = {"run": run, "overrides": common, "parameters": {"mix": {"settings": mixes}}}
        digest = hashlib.sha256(orjson.dumps(list(_flat(content)))).hexdigest()[:8]
        return {
            "name": f"{kind}-{digest}",
            "description": f"{self.target.recipe.name}: {what} (emma mix optimise)",
            **content,
            "search": "grid",
            "concurrent": self.settings.concurrent,
        }

    def fitted_groups(self) -> list[str]:
        """Validation groups that the law predicts: all but those of whole components whose categories have their own."""
        parted = {lever.component for lever in self.proxy.levers if lever.factored}
        return [
            group.name
            for group in self.proxy.plan.groups
            if group.name not in {f"component-{c}" for c in parted}
        ]

    def own_levers(self, groups: Sequence[str]) -> np.ndarray:
        """The lever of each group's own text [groups]: that of most of its validation tokens."""
        places = {
            (row.source.component, row.source.language): (row.source.component, row.source.category)
            for row in self.proxy.plan.sources
        }
        levers = {(lever.component, lever.category): place for place, lever in enumerate(self.proxy.levers)}
        targets = {group.name: group.targets for group in self.proxy.plan.groups}
        own = []
        for name in groups:
            tokens = np.zeros(len(levers))
            for key, count in targets[name].items():
                component, category = places[key]
                place = levers.get((component, category), levers.get((component, None)))
                if place is not None:
                    tokens[place] += count
            own.append(int(np.argmax(tokens)))
        return np.array(own)

    def objective_weights(self, groups: Sequence[str]) -> np.ndarray:
        """Weights of the groups in the objective [groups], which sum to 1.

        Raises:
            UserError: no group counts, or one has no weight.
        """
        objective = self.settings.objective
        counted = [any(fnmatchcase(name, pattern) for pattern in objective.groups) for name in groups]
        if not any(counted):
            raise UserError(
                f"objective.groups: {', '.join(objective.groups)} fits none of {', '.join(groups)}. Fix: name one of them"
            )
        languages = {
            group.name: len({language for (_, language), count in group.targets.items() if count})
            for group in self.proxy.plan.groups
        }
        levers, own = self.target.levers, self.own_levers(groups)
        found = np.zeros(len(groups))
        for place, name in enumerate(groups):
            if not counted[place]:
                continue
            if objective.weights == "languages":
                found[place] = languages[name]
            elif objective.weights == "tokens":
                found[place] = levers[int(own[place])].planned
            else:
                fits = [w for pattern, w in objective.weights.items() if fnmatchcase(name, pattern)]
                if not fits:
                    raise UserError(f"objective.weights: {name} has none. Fix: give it a number")
                found[place] = fits[-1]
        return found / found.sum()

    def limits(self, groups: Sequence[str]) -> np.ndarray:
        """Most that each group may rise, as a part of its loss [groups]; infinite without a limit."""
        found = np.full(len(groups), np.inf)
        for limit in self.settings.limits:
            for place, name in enumerate(groups):
                if fnmatchcase(name, limit.group):
                    found[place] = np.inf if limit.worse is None else limit.worse
        return found

    def idle_limits(self, groups: Sequence[str]) -> list[str]:
        """Limits that fit no group, and so hold nothing."""
        patterns = [limit.group for limit in self.settings.limits]
        return [each for each in patterns if not any(fnmatchcase(name, each) for name in groups)]


def write_sweep(sweep: Mapping[str, Any], path: Path) -> None:
    """Writes a sweep file, unless it is there.

    Raises:
        UserError: another one is.
    """
    if path.is_file():
        present = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        if list(_flat(present)) != list(_flat(sweep)):
            raise UserError(
                f"{path}: was changed since it was written; its trials would not be those of the design. Fix: remove it, "
                "and change the settings instead"
            )
        return
    with atomic_write(path, "w") as handle:
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.width = 1000
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(dict(sweep), handle)


def _flat(value: Any, at: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values in their order, for comparison and hashing; how many run at once says nothing."""
    if isinstance(value, Mapping):
        return [
            each
            for key, inner in value.items()
            if key != "concurrent"
            for each in _flat(inner, f"{at}/{key}")
        ]
    return [(at, json.dumps(value))]


def _texts(values: Mapping[str, Any]) -> list[str]:
    """Overrides as on the command line; JSON is valid YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
