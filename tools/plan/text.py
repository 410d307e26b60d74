"""A plan as text for the terminal."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from emma.recipes.devices import device
from emma.recipes.vocabulary import growth_of
from emma.tools.plan.alternatives import Alternative
from emma.tools.plan.memory import MARGIN, recomputed_modules
from emma.tools.plan.plan import Plan
from emma.tools.plan.throughput import UNCERTAINTY

if TYPE_CHECKING:
    from emma.tools.plan.simulate import Simulation

__all__ = ["plan_text", "simulation_text"]

_SHOWN = 8


def plan_text(plan: Plan, *, all_alternatives: bool = False) -> str:
    """The plan in sections: run, memory, time, checkpoints, alternatives."""
    sections = [_run(plan), _memory(plan), _time(plan), _checkpoints(plan)]
    if plan.alternatives:
        sections.append(_alternatives(plan, all_alternatives))
    return "\n\n".join("\n".join(lines) for lines in sections)


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {name:<13} {text}" for name, text in rows]


def _count(value: float, digits: int = 3) -> str:
    """`8.030 billion`, `2.1 million` or the number itself."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if value >= unit:
            return f"{value / unit:,.{digits}f} {name}"
    return f"{value:,.0f}"


def _flop(value: float) -> str:
    return f"{value / 1e9:.1f} GFLOP" if value >= 1e9 else f"{value / 1e6:.1f} MFLOP"


def _size(gib: float) -> str:
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{gib * 1024:,.1f} MiB"


def _run(plan: Plan) -> list[str]:
    recipe, p = plan.recipe, plan.recipe.parallelism
    cut = f"tensor {p.tensor}{' with sequence parallelism' if p.sequence else ''}, pipeline {p.pipeline}"
    if p.virtual_pipeline > 1:
        cut += f" in {p.virtual_pipeline} chunks"
    cut += f", context {p.context}, data {recipe.data_parallel}"
    batch = recipe.batch
    tokens = recipe.tokens_per_step
    power = f" (2^{tokens.bit_length() - 1})" if tokens.bit_count() == 1 else ""
    total = recipe.total_tokens
    rows = [
        (
            "model",
            f"{recipe.model.name}, {_count(plan.parameters)} parameters, {_count(plan.matmul_parameters)} in "
            "matrix products",
        ),
        ("devices", f"{recipe.cluster.world_size} × {device(recipe.cluster.device).description}"),
        ("layout", f"{cut}; {recipe.precision.name}"),
        (
            "step",
            f"{batch.global_:,} sequences of {batch.sequence_length:,} = {tokens:,} tokens{power}; {plan.microbatches} "
            f"micro-batches of {batch.micro} per data-parallel rank",
        ),
        (
            "budget",
            f"{recipe.schedule.steps:,} steps, {recipe.total_samples:,} samples, {_count(total, 2)} tokens",
        ),
        (
            "FLOPs",
            f"{_flop(plan.flops_causal)} per token with causal attention, {_flop(plan.flops_full)} with full; "
            f"{plan.flops_causal * total:.3g} and {plan.flops_full * total:.3g} in all",
        ),
    ]
    if (grown := growth_of(recipe.model.tokenizer.path)) is not None:
        rows.insert(1, ("vocabulary", grown.sentence))
    title = f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name
    return [title, *_rows(rows)]


_PARTS = {"core_attn": "attention scores", "mlp": "feed-forward parts"}


def _memory(plan: Plan) -> list[str]:
    recipe, m = plan.recipe, plan.memory
    precision, p = recipe.precision, recipe.parallelism
    gradient = 4 if precision.compute == "fp32" or precision.grad_reduce_fp32 else 2
    shards = (
        recipe.data_parallel * p.context // p.distributed_optimizer_instances
        if p.distributed_optimizer
        else 1
    )
    recompute = {
        "none": "nothing recomputed",
        "selective": f"{' and '.join(sorted(_PARTS[part] for part in recomputed_modules(plan.recipe)))} recomputed",
        "full": f"{p.recompute_layers or 'all'} layers per stage recomputed",
    }[p.recompute]
    formats = "FP8 and its transpose" if precision.fp8 else precision.compute.upper()
    rows = [
        ("weights", m.weights, formats),
        ("gradients", m.gradients, f"{gradient} bytes per weight"),
        ("optimizer", m.optimizer, f"main weights and two moments over {shards} ranks"),
        ("activations", m.activations, f"tensors kept for the backward pass, {recompute}"),
        ("logits", m.logits, "one micro-batch, and its FP32 copy in the loss"),
        (
            "runtime",
            m.runtime,
            "CUDA context, NCCL, workspaces" if recipe.cluster.device != "cpu" else "Python, libraries",
        ),
        ("allocator", m.allocator, "rounding and fragments, 12 % of activations and logits"),
    ]
    digits = 1 if m.total >= 10 else 3
    lines = [f"memory of a rank, pipeline stage {m.stage} (the fullest), GiB"]
    lines += [f"  {name:<13} {size:6.{digits}f}  {how}" for name, size, how in rows]
    limit = plan.memory_limit_gib
    room = "" if limit is None else f"  of {limit:.1f} usable ({MARGIN:.0%} of the card stays free)"
    return [*lines, f"  {'total':<13} {m.total:6.{digits}f}{room}"]


def _time(plan: Plan) -> list[str]:
    if plan.throughput is None or plan.time is None:
        return [
            "time",
            "  No speed is published for this device and precision. Measure a few steps and pass the result:",
            "  --speed TOKENS (per second and GPU).",
        ]
    t, time = plan.throughput, plan.time
    mfu = f", {t.mfu:.1%} of the dense peak" if t.mfu is not None else ""
    source = "as given" if plan.measured else f"from published measurements, ± {UNCERTAINTY:.0%}"
    rows = [
        ("speed", f"{t.tokens_per_second_per_gpu:,.0f} tokens/s per GPU ({source})"),
        (
            "",
            f"{t.tflops_causal:.0f} TFLOP/s per GPU with causal attention ({t.tflops_full:.0f} with full){mfu}",
        ),
        (
            "step",
            f"{time.seconds_per_step:.2f} s"
            + (f", {t.bubble:.1%} of it pipeline bubble" if t.bubble else ""),
        ),
        (
            "run",
            f"{time.days:.1f} days, {time.gpu_hours:,.0f} GPU-hours, without queues, interruptions and validation",
        ),
    ]
    if plan.energy is not None:
        a, kind = plan.assumptions, device(plan.recipe.cluster.device)
        rows += [
            ("energy", f"{plan.energy.megawatt_hours:,.0f} MWh, {plan.energy.co2_tonnes:,.0f} t CO2"),
            (
                "",
                f"at {kind.power_w:.0f} W per board and {kind.host_power_w:.0f} W for its share of the node (maxima), PUE "
                f"{a.pue:g}, {a.grid_g_per_kwh:g} g/kWh",
            ),
        ]
    paid = [f"{cost.what}: {cost.factor - 1:+.1%} ({cost.source})" for cost in t.costs if cost.what]
    rows += [("it pays for" if number == 0 else "", text) for number, text in enumerate(paid)]
    rows += [("assumed", text) for text in t.assumptions]
    return ["time", *_rows(rows)]


def _checkpoints(plan: Plan) -> list[str]:
    c, checkpoint = plan.checkpoints, plan.recipe.checkpoint
    keep = "all kept" if checkpoint.keep is None else f"at most {c.kept} kept"
    blocking = f"{c.seconds:.0f} s" if c.seconds >= 1 else f"{c.seconds:.2f} s"
    how = (
        f"copied to host memory at {plan.assumptions.host_copy_gb_per_s:g} GB/s per rank, written in the background"
        if checkpoint.asynchronous
        else f"written at {plan.assumptions.storage_gb_per_s:g} GB/s by all ranks together"
    )
    planning = f", {c.planning_seconds:.1f} s before that to plan it" if c.planning_seconds >= 0.1 else ""
    share = "" if c.share_of_time is None else f", {c.share_of_time:.1%} of the run"
    rows = [
        (
            "size",
            f"{_size(c.gib)} each; {c.saves:,} saves, {keep}: {_size(c.disk_gib)} with the one being written",
        ),
        ("cost", f"{blocking} per save ({how}){planning}{share}"),
    ]
    t, host = c.traffic, plan.host_memory
    node = plan.recipe.cluster.host_memory_gib
    rows += [
        (
            "a rank",
            f"writes {_size(t.written_gib)} at a save; reads {_size(t.verified_gib)} to verify and {_size(t.read_gib)} to "
            f"resume, {t.seconds_to_load:.0f} s at {plan.assumptions.storage_gb_per_s:g} GB/s for all ranks",
        ),
        (
            "host memory",
            f"{_size(t.host_save_gib)} of a rank at a save, {_size(t.host_load_gib)} at a resume; a node needs "
            f"{host.total:.0f} GiB with its ranks" + (f", has {node:g}" if node else ""),
        ),
    ]
    if c.minutes_between is not None:
        rows.append(
            (
                "at risk",
                f"{c.minutes_between:.0f} minutes of training between saves (every {checkpoint.interval} steps)",
            )
        )
    return ["checkpoints", *_rows(rows)]


def _alternatives(plan: Plan, everything: bool) -> list[str]:
    usable = [a for a in plan.alternatives if a.reason is None]
    shown = usable if everything else usable[:_SHOWN]
    lines = ["other layouts of this cluster and precision that fit, fastest first"]
    if any(a.context > 1 for a in usable) and plan.recipe.batch.document_masking:
        lines[0] += "; with context > 1 last: masked, it has not run on GPUs yet"
    lines.append("   tensor  pipeline  context  micro-batch  recomputed layers    GiB  tokens/s per GPU")
    for a in shown:
        speed = "-" if a.tokens_per_second_per_gpu is None else f"{a.tokens_per_second_per_gpu:,.0f}"
        mark = "*" if _is_current(plan, a) else " "
        lines.append(
            f" {mark} {a.tensor:6}  {a.pipeline:8}  {a.context:7}  {a.micro:11}  {a.recompute_layers:17}  {a.memory_gib:5.1f}"
            f"  {speed:>16}"
        )
    if len(shown) < len(usable):
        lines.append(f"   and {len(usable) - len(shown)} more (--all)")
    reasons: dict[str, list[str]] = defaultdict(list)
    for a in plan.alternatives:
        if a.reason is not None:
            reasons[a.reason].append(f"{a.tensor}·{a.pipeline}·{a.context}·{a.micro}")
    lines.append("and those that don't (tensor·pipeline·context·micro-batch)")
    listed = list(reasons.items())
    for reason, layouts in listed if everything else listed[:_SHOWN]:
        few = ", ".join(layouts[:4]) + (f" and {len(layouts) - 4} more" if len(layouts) > 4 else "")
        lines.append(f"   {few}: {reason}")
    if not everything and len(listed) > _SHOWN:
        lines.append(f"   and {len(listed) - _SHOWN} more reasons (--all)")
    return lines


def _is_current(plan: Plan, a: Alternative) -> bool:
    return not a.overrides(plan.recipe)


def simulation_text(simulation: Simulation) -> str:
    """What Megatron built, one line per rank, and how it compares with the plan."""
    lines = [
        f"simulation: one rank of each stage and tensor-parallel position, of {simulation.world_size} ranks"
    ]
    for rank in simulation.ranks:
        chunks = " + ".join(f"{count:,}" for count in rank["parameters"])
        line = f"  rank {rank['rank']:4}  stage {rank['stage']}, tensor rank {rank['tensor_rank']}: {chunks} parameters"
        if rank["buffers"] is not None:
            buffers = rank["buffers"]
            line += f", {buffers['gradients']:,} gradients, {buffers['optimizer']:,} of them with this rank's optimizer"
        lines.append(line)
    lines += [f"  note: {note}" for note in simulation.notes]
    if simulation.faults:
        return "\n".join([*lines, *(f"  differs: {fault}" for fault in simulation.faults)])
    lines.append(
        "  parameters, micro-batches, the shape and coverage of every checkpoint tensor, and the samples of the first and "
        "last step are as planned"
    )
    return "\n".join(lines)
