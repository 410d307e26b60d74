"""Charts of the training loop: loss, validation, learning rate, gradient norm, speed, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from emma.tools.charts.inline import Series, line_chart
from emma.tools.evaluation.groups import order_categories
from emma.tools.report.records import RunRecord

__all__ = [
    "GroupSet",
    "category_colors",
    "group_sets",
    "one_tokenizer",
    "overlaid_charts",
    "training_charts",
    "validation_charts",
]

_METRICS = (
    ("learning_rate", "Learning rate", "", True),
    ("grad_norm", "Gradient norm", "before clipping", True),
    ("tokens_per_second_per_gpu", "Throughput", "tokens per second per device", True),
    ("mfu", "Model FLOPs utilisation", "share of the device's peak", True),
    ("memory_gib", "Memory", "peak GiB per device", True),
    ("data_wait_ms", "Waiting for data", "ms per step", True),
    ("skipped", "Skipped steps", "since the last log line", True),
)


@dataclass(frozen=True)
class GroupSet:
    """Validation groups that share a chart; `names` maps each group to its name there."""

    title: str
    names: dict[str, str]
    ordered: bool


def group_sets(groups: Sequence[str], run: RunRecord) -> list[GroupSet]:
    """Validation groups by what they divide: components, a component's categories, languages, and the
    rest."""
    sets: dict[str, dict[str, str]] = {}
    ordered: set[str] = set()
    for group in groups:
        kind, _, rest = group.partition("-")
        if kind == "component" and rest:
            title, name = "Validation loss by component", rest
        elif kind == "category" and "-" in rest:
            component, _, name = rest.partition("-")
            title = f"Validation loss by resource category: {component}"
            ordered.add(title)
        elif kind == "language" and rest:
            title, name = "Validation loss by language", rest
        else:
            title, name = "Validation loss", group
        sets.setdefault(title, {})[group] = name
    result = []
    for title, names in sets.items():
        if title in ordered:
            order = order_categories(names.values(), run.recipe.data.mix)
            names = dict(sorted(names.items(), key=lambda item: order.index(item[1])))
        result.append(GroupSet(title, names, title in ordered))
    return result


def category_colors(categories: Sequence[str]) -> dict[str, str]:
    """Colours of resource categories, from high to low resource."""
    last = max(1, len(categories) - 1)
    return {name: f"o{round(place * 6 / last)}" for place, name in enumerate(categories)}


def training_charts(run: RunRecord) -> list[Markup]:
    """One chart per logged metric, the loss first."""
    charts = []
    steps, loss = run.series("loss")
    if loss:
        charts.append(
            line_chart("Training loss", [Series("loss", steps, loss)], unit="nats per token", height=240)
        )
    for key, title, unit, zero in _METRICS:
        steps, values = run.series(key)
        # A line that is 0 throughout (no skipped steps, no device memory on a CPU) says nothing.
        if not any(values):
            continue
        charts.append(line_chart(title, [Series(title, steps, values)], unit=unit, zero=zero, height=160))
    return charts


def validation_charts(run: RunRecord) -> list[Markup]:
    """One chart per set of validation groups."""
    charts = []
    for group_set in group_sets(run.groups, run):
        colors = (
            list(category_colors(list(group_set.names.values())).values())
            if group_set.ordered
            else [f"s{place % 8}" for place in range(len(group_set.names))]
        )
        series = [
            Series(name, *run.validation(group), color)
            for (group, name), color in zip(group_set.names.items(), colors, strict=True)
        ]
        charts.append(line_chart(group_set.title, series, unit="nats per token", height=220, keys=True))
    return charts


def one_tokenizer(runs: Sequence[RunRecord]) -> bool:
    """Whether the runs read text with one tokenizer, so that their losses per token can be compared."""
    checksums = [run.mix_facts.get("tokenizer_sha256") or run.recipe.model.tokenizer.sha256 for run in runs]
    if all(checksums):
        return len(set(checksums)) == 1
    return len({(run.recipe.model.tokenizer.path, run.recipe.model.vocab_size) for run in runs}) == 1


def overlaid_charts(runs: Sequence[RunRecord]) -> list[Markup]:
    """Training loss and every validation group that several runs share, one line per run; nothing for runs with
    different tokenizers, whose losses per token mean different things."""
    charts: list[Markup] = []
    if not one_tokenizer(runs):
        return charts
    losses = [
        Series(run.name, *run.series("loss"), f"s{place}")
        for place, run in enumerate(runs)
        if run.series("loss")[1]
    ]
    if losses:
        charts.append(line_chart("Training loss", losses, unit="nats per token", height=240))
    groups = list(dict.fromkeys(group for run in runs for group in run.groups))
    for group in groups:
        having = [(place, run) for place, run in enumerate(runs) if group in run.groups]
        if len(having) < 2:
            continue
        series = [Series(run.name, *run.validation(group), f"s{place}") for place, run in having]
        charts.append(line_chart(f"Validation: {_spoken(group)}", series, unit="nats per token", height=170))
    return charts


def _spoken(group: str) -> str:
    kind, _, rest = group.partition("-")
    if kind == "category":
        return rest.replace("-", ", ", 1)
    return rest if kind in ("component", "language") and rest else group
