"""A proposal as a data recipe, with what it rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from ruamel.yaml import YAML

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import sha256_file, write_json, write_text
from emma.base.manifest import package_versions
from emma.recipes.load import load_recipe, load_section
from emma.tools.mix.prepare import MixSettings, plan_mix
from emma.tools.optimise.fit import Fit
from emma.tools.optimise.levers import keys_of, levers_of, shares_of
from emma.tools.optimise.study import Study
from emma.tools.optimise.verdict import Verdict

__all__ = ["percent", "write_proposal"]

_EXACT = 1e-5


def percent(part: float) -> str:
    """`+1.2 %`; a part of a loss."""
    return f"{100 * part:+.1f} %".replace("-", "−")


def write_proposal(study: Study, fit: Fit, verdict: Verdict | None) -> Path:
    """Writes `proposal.yaml`, a data recipe, and `proposal.manifest.json`; returns the recipe's path.

    Raises:
        CheckFailedError: the recipe does not plan the shares that were found.
    """
    path = study.results / "proposal.yaml"
    keys = keys_of(study.target.levers, fit.proposal.shares, study.target.budget)
    digest = hashlib.sha256(orjson.dumps(keys, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]
    write_text(path, _header(study, fit, verdict) + _recipe(study, keys, digest))
    recipe = load_recipe(study.run, [f"data={path}", *study.changes])
    planned = shares_of(levers_of(recipe.data.mix, plan_mix(MixSettings.of_recipe(recipe))))
    if (off := float(np.abs(planned - fit.proposal.shares).max())) > _EXACT:
        raise CheckFailedError(
            f"{path}: plans a share that is off by {off:.2g}; this is a fault of this program"
        )
    write_json(
        path.with_name("proposal.manifest.json"),
        {
            "run": study.run,
            "overrides": list(study.changes),
            "recipe_sha256": study.target.recipe.sha256,
            "settings": study.settings.model_dump(mode="json"),
            "store": fit.trials.store,
            "proxies": {
                "sweep": study.sweep()["name"],
                "trials": fit.trials.names,
                "sha256": sha256_file(study.results / "proxies.parquet"),
            },
            "check": None if verdict is None else verdict.to_dict()["verdict"],
            "keys": keys,
            "versions": package_versions(("emma-recipes", "numpy", "scipy", "megatron-core", "torch")),
        },
    )
    return path


def _header(study: Study, fit: Fit, verdict: Verdict | None) -> str:
    changes = fit.proposal.changes
    worst = int(np.argmax(changes))
    base = float(fit.law.predict(study.base[None])[0] @ fit.weights)
    lines = [
        f"Shares from {len(fit.trials.of('mix'))} proxies of {study.proxy.budget:,} tokens (emma mix optimise {study.run}, "
        f"settings {study.settings.name}).",
        f"Objective: {', '.join(study.settings.objective.groups)}, weighted by {_weights(study)}. Predicted "
        f"{percent(fit.proposal.objective)} bits per byte (noise of one proxy {100 * fit.objective_noise / base:.1f} %); "
        f"worst group {fit.trials.groups[worst]} {percent(changes[worst])}.",
        _checked(verdict),
        "What it rests on (store, proxies, settings, versions): proposal.manifest.json beside this file.",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _weights(study: Study) -> str:
    weights = study.settings.objective.weights
    return weights if isinstance(weights, str) else "given numbers"


def _checked(verdict: Verdict | None) -> str:
    if verdict is None:
        return "Not checked yet: call the command again."
    found = verdict.proposal
    said = f"Checked with {found.runs[0]} new seeds: {found.word}, {percent(found.measured)} ± {100 * found.error:.1f} %"
    said += f"; limits broken: {', '.join(found.broken)}" if found.broken else "; no limit broken"
    if verdict.better is not None:
        said += f". The mix {verdict.better.mix} measured better: {percent(verdict.better.measured)}"
    return said + "."


def _recipe(study: Study, keys: Mapping[str, float], digest: str) -> str:
    """The data recipe: the run's by its name with the keys that differ, or all of it where no file says the run's data."""
    data = study.target.recipe.data
    name = f"{data.name}_opt_{digest}"
    before = keys_of(study.target.levers, study.base, study.target.budget)
    if _is_shipped(data):
        lines = [f"base: {data.name}", f"name: {name}", "mix:", "  components:"]
        components: dict[str, list[str]] = {}
        for key, value in keys.items():
            component, _, rest = key.partition(".")
            components.setdefault(component, [])
            comment = f"  # was {before[key]:.6g}" if abs(value / before[key] - 1) > 1e-9 else ""
            if rest == "share":
                components[component].append(f"      share: {value!r}{comment}")
            else:
                if "      categories:" not in components[component]:
                    components[component].append("      categories:")
                category = rest.split(".")[1]
                components[component].append(f"        {category}: {{factor: {value!r}}}{comment}")
        for component, inner in components.items():
            lines += [f"    {component}:", *inner]
        return "\n".join(lines) + "\n"
    values = data.model_dump(mode="json", by_alias=True)
    values["name"] = name
    for key, value in keys.items():
        target = values["mix"]["components"]
        *parents, last = key.split(".")
        for part in parents:
            target = target[part]
        target[last] = value
    text = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(values, text)
    return text.getvalue()


def _is_shipped(data: Any) -> bool:
    try:
        return bool(load_section("data", data.name) == data)
    except UserError:
        return False
