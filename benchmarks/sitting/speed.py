"""Training runs of a sitting: each trains until enough steps are timed, and is then killed, so that no time goes into a
checkpoint."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.precision_results import result_of
from benchmarks.sitting.ledger import Ledger, run_command
from benchmarks.train_gpu import Bench
from emma.base.errors import CheckFailedError
from emma.tools.runs.metrics import read_metrics

__all__ = ["OutOfMemoryError", "Timing", "per_layer", "price", "train"]


class OutOfMemoryError(CheckFailedError):
    """The model does not fit."""

    SAYS = "do not fit on this device"


@dataclass(frozen=True)
class Timing:
    """How many steps are timed, after how many that are not."""

    warm: int
    steps: int


def train(
    ledger: Ledger,
    bench: Bench,
    timing: Timing,
    name: str,
    precision: str,
    layers: int,
    overrides: Sequence[str],
    limit: float,
    trace: Path | None = None,
) -> dict[str, Any]:
    """One run of `emma train`; speed, memory and losses of its steps.

    Args:
        ledger: of the sitting.
        bench: the run file.
        timing: steps to time.
        name: of the run.
        precision: precision recipe.
        layers: of the model.
        overrides: of the recipe, beyond these.
        limit: seconds.
        trace: a file that the run writes, which is waited for too.

    Raises:
        OutOfMemoryError: the device's memory did not suffice.
        CheckFailedError: the run failed, or logged too few steps.
    """
    words = [*bench.overrides, f"name={name}", f"precision={precision}", f"model.layers={layers}", *overrides]
    recipe = bench.recipe(precision, layers)
    metrics = bench.folder / "runs" / name / "metrics.jsonl"
    wanted = timing.warm + timing.steps

    def enough() -> bool:
        if len(read_metrics(metrics)[0]) < wanted:
            return False
        return trace is None or _written(trace)

    code, said = run_command(ledger, ["-m", "emma.cli", "train", str(bench.run), *words], limit, enough)
    if "out of memory" in said.lower():
        raise OutOfMemoryError(f"{layers} layers in {precision} {OutOfMemoryError.SAYS}")
    rows = read_metrics(metrics)[0][:wanted]
    if len(rows) < wanted:
        raise CheckFailedError(f"exit code {code} after {len(rows)} steps: {said[-3000:]}")
    result = asdict(result_of(recipe, rows, rows, timing.warm))
    del result["loss_difference"]
    speeds = [row["tokens_per_second_per_gpu"] for row in rows[timing.warm :]]
    return {
        **result,
        "spread_percent": 100 * (max(speeds) - min(speeds)) / statistics.median(speeds),
        "data_wait_ms": statistics.median(row["data_wait_ms"] for row in rows[timing.warm :]),
        "losses": [round(row["loss"], 5) for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
    }


def _written(trace: Path) -> bool:
    """Whether the trace is there and closed: a gzip file that is still being written has no end."""
    import gzip

    if not trace.is_file():
        return False
    try:
        with gzip.open(trace) as handle:
            while handle.read(1 << 22):
                pass
    except (EOFError, gzip.BadGzipFile):
        return False
    return True


def per_layer(many: dict[str, Any], few: dict[str, Any], whole: int) -> dict[str, Any]:
    """Time of a layer from two depths, and what the whole depth would reach.

    Args:
        many: result of the deeper run.
        few: result of the shallower run.
        whole: layers of the whole model.
    """
    microseconds = {run["layers"]: 1e6 / run["tokens_per_second"] for run in (many, few)}
    depth, shallow = many["layers"], few["layers"]
    layer = (microseconds[depth] - microseconds[shallow]) / (depth - shallow)
    rest = microseconds[shallow] - shallow * layer
    return {
        "precision": many["precision"],
        "from_layers": [shallow, depth],
        "us_per_token_and_layer": layer,
        "us_per_token_outside_layers": rest,
        "gib_per_layer": (many["memory_gib"] - few["memory_gib"]) / (depth - shallow),
        "layers": whole,
        "tokens_per_second_of_all_layers": 1e6 / (rest + whole * layer),
        "caveat": "computation of all layers on one card: without any communication, and with the optimizer's step "
        "spread over few micro-batches",
    }


def price(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What a choice costs: time per token of the recipe as it is, relative to the run without the choice."""
    return {
        "tokens_per_second_with": base["tokens_per_second"],
        "tokens_per_second_without": other["tokens_per_second"],
        "costs_percent": 100 * (other["tokens_per_second"] / base["tokens_per_second"] - 1),
        "gib": base["memory_gib"] - other["memory_gib"],
    }
