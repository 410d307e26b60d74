"""Facts about a run: what it is, what it ran on, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

from emma.tools.charts.scales import duration, number
from emma.tools.report.records import RunRecord
from emma.tools.runs.goodput import launch_ends
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import events

__all__ = [
    "device_hours",
    "environment_facts",
    "flat",
    "key_figures",
    "launches",
    "recipe_facts",
    "recipe_yaml",
]


def device_hours(run: RunRecord, step: int | None = None) -> float | None:
    """Device-hours of the logged steps: tokens divided by tokens per second, summed over steps; None if no
    speed was logged.

    Args:
        run: the run.
        step: count up to this step; by default, all.

    Excludes steps lost when a launch was killed, start-up, validation, and saving.
    """
    total, before = 0.0, 0
    for row in run.steps:
        if step is not None and row["step"] > step:
            break
        speed = row.get("tokens_per_second_per_gpu")
        tokens = (row["step"] - before) * run.recipe.tokens_per_step
        before = row["step"]
        if not speed:
            return None
        total += tokens / speed / 3600
    return total or None


def key_figures(run: RunRecord) -> list[tuple[str, str]]:
    """(figure, label) pairs about training, for the top of the page."""
    figures: list[tuple[str, str]] = []
    if not run.steps:
        return figures
    last = run.steps[-1]
    figures.append((f"{number(last['step'])} / {number(run.recipe.schedule.steps)}", "steps"))
    figures.append((number(last.get("consumed_tokens")), "tokens trained on"))
    if last.get("loss") is not None:
        figures.append((f"{last['loss']:.3f}", "training loss, last step"))
    _, speed = run.series("tokens_per_second_per_gpu")
    if speed:
        figures.append((number(sorted(speed)[len(speed) // 2]), "tokens per second per device, median"))
    _, tflops = run.series("tflops_per_gpu_causal")
    _, mfu = run.series("mfu")
    if tflops and mfu:
        # Without a peak to compare with (on a CPU), TFLOP/s say no more than tokens per second.
        share = sorted(mfu)[len(mfu) // 2]
        figures.append(
            (
                f"{number(sorted(tflops)[len(tflops) // 2])}",
                f"TFLOP/s per device, {share:.0%} of its peak (causal attention counted half)",
            )
        )
    hours = device_hours(run)
    if hours:
        on_cpu = run.recipe.cluster.device == "cpu"
        figures.append((duration(hours * 3600), "process time" if on_cpu else "GPU time"))
    return figures


def recipe_facts(run: RunRecord) -> list[tuple[str, str]]:
    """A summary of the recipe."""
    from emma.tools.arithmetic.parameters import total_parameters

    recipe = run.recipe
    model, batch, schedule, layout = recipe.model, recipe.batch, recipe.schedule, recipe.parallelism
    decay = (
        f"{schedule.decay} to {number(schedule.min_learning_rate)}"
        if schedule.decay != "constant"
        else "constant"
    )
    warmup = f", {schedule.warmup_steps} warm-up steps" if schedule.warmup_steps else ""
    start = recipe.start.mode + (f" of {recipe.start.checkpoint}" if recipe.start.checkpoint else "")
    return [
        (
            "Model",
            f"{model.name}: {number(float(total_parameters(model)))} parameters, {model.layers} layers, "
            f"width {model.hidden_size}, {model.attention_heads} heads in {model.query_groups} groups, "
            f"vocabulary {model.vocab_size}",
        ),
        *([("Vocabulary", run.growth.sentence)] if run.growth else []),
        *([("Tokens", run.token_cost)] if run.token_cost else []),
        *([("Trained", f"only {', '.join(recipe.train.only)}")] if recipe.train else []),
        ("Start", start),
        ("Data", recipe.data.name),
        (
            "Batch",
            f"{batch.global_} × {batch.sequence_length} tokens per step, micro-batch {batch.micro}",
        ),
        ("Schedule", f"{schedule.steps} steps, peak {number(schedule.learning_rate)}, {decay}{warmup}"),
        (
            "Optimizer",
            f"AdamW, β {recipe.optimizer.beta1} and {recipe.optimizer.beta2}, weight decay "
            f"{recipe.optimizer.weight_decay}, clipping at {recipe.optimizer.clip_grad}",
        ),
        ("Precision", recipe.precision.name),
        (
            "Layout",
            f"tensor {layout.tensor} × pipeline {layout.pipeline} × context {layout.context} × "
            f"data {recipe.data_parallel}, on {recipe.cluster.nodes} × {recipe.cluster.gpus_per_node} "
            f"{recipe.cluster.device}",
        ),
        ("Recipe", f"sha256 {recipe.sha256}"),
    ]


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings into one with dotted keys."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            result |= flat(item, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = item
    return result


def environment_facts(run: RunRecord) -> list[tuple[str, str]]:
    """environment.json without patches and launches, which have their own tables."""
    rest = {key: value for key, value in run.environment.items() if key not in ("patches", "launches")}
    return [
        (key.removeprefix("versions.").removeprefix("hardware."), _text(value))
        for key, value in flat(rest).items()
        if value not in (None, "", [], {})
    ]


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def launches(run: RunRecord) -> list[dict[str, str]]:
    """The run's launches: number, start time, what each started from, which checkpoints it set aside, host, and how it
    ended."""
    rows = []
    ends = {end.number: end for end in launch_ends(RunFolder(run.folder))}
    aside = [e for e in events(run.folder / "checkpoints.jsonl") if e["event"] == "set aside"]
    for launch in run.environment.get("launches", []):
        load = launch["load"]
        source = f" from step {load['step']}" if load.get("step") else ""
        for event in aside:
            if event["launch"] == launch["number"]:
                source += (
                    f"; step {event['step']} set aside ({event['steps_lost']} steps lost): {event['reason']}"
                )
        rows.append(
            {
                "number": str(launch["number"]),
                "started": launch["started"],
                "load": load["mode"] + source,
                "host": launch["host"],
                "ended": str(ends[launch["number"]].how or "") if launch["number"] in ends else "",
            }
        )
    return rows


def recipe_yaml(run: RunRecord) -> str:
    """The resolved recipe as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(run.recipe.to_dict(), text)
    return text.getvalue()
