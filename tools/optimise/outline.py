"""What an optimisation would do and cost, before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from emma.tools.optimise.study import Study
from emma.tools.plan.plan import make_plan

__all__ = ["outline", "outline_text"]


def outline(study: Study) -> dict[str, Any]:
    """Levers with their bounds, what is at its caps, and the cost of the proxies (by the plan of their recipe)."""
    target, settings = study.target, study.settings
    groups = study.fitted_groups()
    weights, limits, own = study.objective_weights(groups), study.limits(groups), study.own_levers(groups)
    # A lever can grow to its caps, to its reach, or to all there is.
    highest = np.minimum(np.minimum(target.caps, study.base * np.exp(settings.reach)), 1.0)
    growth = np.maximum(highest / study.base, 1.0)
    tight = growth < 1.25
    trials = study.proxies + settings.replicates
    checks = 2 * settings.check.seeds + sum(
        1 if mix == "proportional" else settings.check.seeds for mix in settings.check.compare
    )
    proxy, run = make_plan(study.proxy.recipe), make_plan(target.recipe)
    hours = None if proxy.time is None else proxy.time.gpu_hours
    whole = None if run.time is None else run.time.gpu_hours
    return {
        "run": study.run,
        "settings": settings.name,
        "budget": target.budget,
        "levers": [
            {
                "name": lever.name,
                "sources": len(lever.tokens),
                "share": float(study.base[n]),
                "epochs": lever.planned / lever.held,
                "most_epochs": lever.cap / lever.held,
                "free": bool(study.free[n]),
                "may_grow": float(growth[n]) if study.free[n] else 1.0,
            }
            for n, lever in enumerate(target.levers)
        ],
        "groups": [
            {
                "name": name,
                "own": target.levers[int(own[n])].name,
                "weight": float(weights[n]),
                "limit": _finite(limits[n]),
            }
            for n, name in enumerate(groups)
        ],
        "idle_limits": study.idle_limits(groups),
        "objective_at_caps": float(sum(weights[n] for n in range(len(groups)) if tight[own[n]])),
        "proxies": {
            "mixes": len(study.design),  # refused here already where the caps leave too few
            "replicates": settings.replicates,
            "checks": checks,
            "tokens_each": study.proxy.budget,
            "gpu_hours_each": hours,
            "gpu_hours": None if hours is None else hours * (trials + checks),
            "part_of_run": None if hours is None or not whole else hours * (trials + checks) / whole,
            "model": study.proxy.recipe.model.name,
        },
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def outline_text(found: dict[str, Any]) -> str:
    """The outline for a terminal."""
    proxies = found["proxies"]
    lines = [
        f"{found['run']}: {found['budget']:,} tokens; settings {found['settings']}",
        f"{'share of':24} {'sources':>7} {'now %':>7} {'epochs':>7} {'most':>6}  may grow",
    ]
    for lever in found["levers"]:
        grows = f"× {lever['may_grow']:.2f}" if lever["free"] else "fixed"
        lines.append(
            f"{lever['name']:24} {lever['sources']:7} {100 * lever['share']:7.2f} {lever['epochs']:7.2f} "
            f"{lever['most_epochs']:6.2f}  {grows}"
        )
    lines.append(f"{'validation group':36} {'weight %':>8}  limit")
    for group in found["groups"]:
        limit = "none" if group["limit"] is None else f"+{100 * group['limit']:g} %"
        lines.append(f"{group['name']:36} {100 * group['weight']:8.1f}  {limit}")
    lines += [f"limit {name}: fits no group" for name in found["idle_limits"]]
    lines.append(
        f"objective weight in groups at their caps (which can grow by less than a quarter): "
        f"{100 * found['objective_at_caps']:.0f} %"
    )
    lines.append(
        f"{proxies['mixes']} mixes + {proxies['replicates']} of the run's own + {proxies['checks']} to check, "
        f"{proxies['tokens_each']:,} tokens each, model {proxies['model']}"
    )
    if proxies["gpu_hours"] is None:
        lines.append("no GPU-hours: the proxies run without a GPU")
    else:
        part = "" if proxies["part_of_run"] is None else f", {100 * proxies['part_of_run']:.1f} % of the run"
        lines.append(
            f"{proxies['gpu_hours_each']:,.1f} GPU-hours each by `emma plan`, {proxies['gpu_hours']:,.0f} in all{part}"
        )
    return "\n".join(lines)
