"""Training the 8B shape on this machine's GPUs: each FP8 recipe against BF16, and ours against plain Megatron.

    python -m benchmarks.train_gpu [--steps 200] [--precision NAME]... [--text TEXT.jsonl] [--folder FOLDER] [section.key=value]...
    python -m benchmarks.train_gpu --dry-run [--device h100]      # what would run; needs no GPU

Every precision trains the same model from the same random weights on the same samples, with as many layers of the
shape as the plan's memory estimate fits for all of them (two fewer each time a card still runs out). Ours is `emma
train` over torchrun; the peer is Megatron's own loop with the same flags in BF16 (benchmarks/megatron_loop.py),
before and after ours. The text, unless given, is the demo's, with a tokenizer trained on it; its ids stay below the
shape's vocabulary, so losses are comparable only between precisions.

Prints a table of results and one of losses, writes `losses.csv` into the folder, and ends with a JSON list of one
object per precision: tokens/s per GPU (median step after the warm-up), causal TFLOP/s, MFU against the peak of the
precision's format, peak memory, and the mean loss over the last quarter of the steps minus BF16's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from ruamel.yaml import YAML

from benchmarks.gpus import Gpus, find_gpus
from benchmarks.measure import overhead
from benchmarks.megatron_loop import Course
from benchmarks.precision_results import loss_table, result_of, result_table
from emma.base.errors import CheckFailedError, RecipeError, UserError
from emma.base.files import read_json, write_json
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.plan.memory import estimate_memory, memory_limit
from emma.tools.runs.checkpoints import LoadPlan
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.arguments import megatron_arguments
from emma.tools.training.launch import launch_command, rank_environment, train_here

__all__ = ["Bench", "layers_that_fit", "main", "run_all"]

PRECISIONS = ("bf16", "fp8_tensorwise", "fp8_delayed", "fp8_blockwise")
BASELINE = "bf16"
WARM = 20
"""Steps that are not timed: autotuning, allocator, FP8 histories."""
DEMO_TEXT = (
    Path(__file__).resolve().parents[1] / "recipes" / "data" / "demo_text" / "monolingual" / "udhr.jsonl.zst"
)


@dataclass(frozen=True)
class Bench:
    """What all runs of the benchmark share; `overrides` apply on top of the run file."""

    run: Path
    folder: Path
    steps: int
    overrides: tuple[str, ...] = ()

    def recipe(self, precision: str, layers: int) -> Recipe:
        """The run of one precision; impossible combinations raise RecipeError."""
        return load_recipe(
            str(self.run),
            [
                *self.overrides,
                f"name={precision}-{layers}-layers",
                f"precision={precision}",
                f"model.layers={layers}",
            ],
        )


def layers_that_fit(recipe: Callable[[str, int], Recipe], precisions: Sequence[str], most: int) -> int:
    """Largest number of layers that the plan's memory fits for every precision.

    Raises:
        UserError: not even the smallest number that all precisions allow fits; the message gives the last reason.
    """
    reason = ""
    for layers in range(most, 0, -1):
        try:
            for precision in precisions:
                candidate = recipe(precision, layers)
                need, limit = estimate_memory(candidate).total, memory_limit(candidate)
                if limit is not None and need > limit:
                    raise RecipeError(
                        "model.layers",
                        f"{layers} layers in {precision} need {need:.1f} GiB, {limit:.1f} may be used",
                        "use more GPUs",
                    )
        except RecipeError as error:
            reason = str(error)
            continue
        return layers
    raise UserError(f"no number of layers can be measured: {reason}")


# --- runs ------------------------------------------------------------------------------------------------------------


def train_ours(recipe: Recipe) -> list[dict[str, Any]]:
    """Trains as `emma train` does and returns the logged steps."""
    run = RunFolder(recipe.run_folder)
    train_here(recipe, run, run.prepare(recipe))
    return read_metrics(run.metrics_file)[0]


def peer_job(recipe: Recipe, folder: Path, number: int) -> dict[str, Any]:
    """Megatron's own loop with a recipe's flags, as `benchmarks.megatron_loop` reads it.

    The mix has a single shard of tokens here, which the stock dataset opens by its prefix.
    """
    from emma.tools.mix.layout import read_mix

    end = read_mix(recipe.mix_folder).end_id
    flags = megatron_arguments(recipe, LoadPlan("scratch"), end, folder / f"megatron-{number}", None)
    prefix = next((recipe.mix_folder / "train").glob("*.idx")).with_suffix("")
    return {"flags": flags, "prefix": str(prefix), "out": str(folder / f"megatron-{number}.course.json")}


def train_peer(recipe: Recipe, folder: Path, number: int) -> Course:
    """Trains with Megatron's own loop through torchrun.

    Raises:
        CheckFailedError: it failed; the message holds the end of its output.
    """
    job = peer_job(recipe, folder, number)
    write_json(folder / f"megatron-{number}.json", job)
    command = [*_torchrun(recipe), "-m", "benchmarks.megatron_loop", str(folder / f"megatron-{number}.json")]
    done = subprocess.run(
        command, env={**os.environ, **rank_environment(recipe)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CheckFailedError(f"Megatron's own loop failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return Course(**read_json(Path(job["out"])))


def _torchrun(recipe: Recipe) -> list[str]:
    ranks = f"--nproc-per-node={recipe.cluster.gpus_per_node}"
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks]


def run_all(bench: Bench, precisions: Sequence[str], layers: int, warm: int) -> dict[str, Any]:
    """Trains every precision, and Megatron's own loop before and after the first one.

    Returns:
        `results` (list of Result), `losses` (by precision and `megatron`), `overhead` (see `measure.overhead`).

    Raises:
        CheckFailedError: a run failed.
    """
    first = bench.recipe(precisions[0], layers)
    rows: dict[str, list[dict[str, Any]]] = {}
    peers = [train_peer(first, bench.folder, 1)]
    results = []
    for precision in precisions:
        recipe = bench.recipe(precision, layers)
        print(f"{precision}: {layers} layers, {bench.steps} steps", file=sys.stderr, flush=True)
        rows[precision] = train_ours(recipe)
        results.append(result_of(recipe, rows[precision], rows[precisions[0]], warm))
        if precision == precisions[0]:
            peers.append(train_peer(first, bench.folder, 2))
    own = first.tokens_per_step / first.cluster.world_size / results[0].tokens_per_second
    losses = {name: [row["loss"] for row in steps] for name, steps in rows.items()}
    return {
        "results": results,
        "losses": {**losses, "megatron": peers[0].losses},
        "overhead": overhead([(own, peer.seconds_per_step(warm)) for peer in peers]),
    }


def run_fitting(bench: Bench, precisions: Sequence[str], layers: int, warm: int) -> dict[str, Any]:
    """`run_all`, repeated with two layers fewer each time a card runs out of memory."""
    while True:
        try:
            return run_all(bench, precisions, layers, warm)
        except CheckFailedError as error:
            if "out of memory" not in str(error).lower() or layers <= 4:
                raise
            layers -= 2
            print(f"out of memory; again with {layers} layers", file=sys.stderr, flush=True)


# --- the machine and the data ----------------------------------------------------------------------------------------


def write_run(folder: Path, options: argparse.Namespace, gpus: Gpus) -> Bench:
    """Writes the run file that all precisions share: the 8B shape on this machine's GPUs."""
    run = {
        "name": "bench",
        "model": options.model,
        "data": data_section(options.text),
        "precision": BASELINE,
        "cluster": {
            "name": "bench",
            "gpus_per_node": gpus.count,
            "device": gpus.device,
            "memory_gib": gpus.memory_gib,
        },
        "parallelism": {"overlap_grad_reduce": gpus.count > 1, "overlap_param_gather": gpus.count > 1},
        "batch": {
            "micro": 1,
            "global": options.global_batch * gpus.count,
            "sequence_length": options.sequence_length,
        },
        "schedule": {"steps": options.steps, "learning_rate": 1e-4, "warmup_steps": options.steps // 10},
        "start": {"mode": "scratch"},
        # Only the end is saved, which is not timed.
        "checkpoint": {"interval": 1_000_000, "keep": 1},
        "validation": {"groups": [], "at_start": False},
        "logging": {"interval": 1, "tensorboard": False},
        "paths": {name: str(folder / name) for name in ("corpus", "store", "mix", "runs")},
    }
    from emma.tools.demo.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.yaml"
    YAML(typ="safe").dump(run, path)
    tokenizer = (
        f"{{path: '{folder / 'tokenizer'}', begin_of_text: '{BEGIN_OF_TEXT}', end_of_text: '{END_OF_TEXT}'}}"
    )
    return Bench(path, folder, options.steps, (f"model.tokenizer={tokenizer}", *options.overrides))


def data_section(text: Path | None) -> dict[str, Any]:
    """The `data` section: one component, read from the text or from the demo's monolingual text."""
    component = {"inputs": [str((text or DEMO_TEXT).resolve())]}
    return {
        "name": "bench",
        "pack": {"components": {"text": component}},
        "mix": {
            "components": {"text": {"share": 1, "max_epochs": 100_000}},
            "validation": {"by_component": False, "by_category": False},
        },
    }


def _demo_texts() -> Iterator[str]:
    import zstandard

    with zstandard.open(DEMO_TEXT, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield orjson.loads(line)["text"]


def prepare_data(bench: Bench, layers: int, precision: str = BASELINE) -> None:
    """Makes tokenizer, token store and a mix of exactly the run's samples with the project's own commands.

    Raises:
        CheckFailedError: one failed; the message holds the end of its output.
    """
    from emma.tools.demo.tokenizer import train_tokenizer, write_tokenizer

    recipe = bench.recipe(precision, layers)
    write_tokenizer(train_tokenizer(_demo_texts(), 16_384), Path(recipe.model.tokenizer.path))
    overrides = [*bench.overrides, f"model.layers={layers}"]
    for command in (("pack", "run"), ("mix", "build")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "emma.cli", *command, str(bench.run), *overrides],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CheckFailedError(f"emma {' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


# --- command line ----------------------------------------------------------------------------------------------------


def dry_run(bench: Bench, precisions: Sequence[str], layers: int) -> str:
    """What would run: for each precision the estimate, launch line and Megatron's arguments, then the peer's."""
    parts = []
    for precision in precisions:
        recipe = bench.recipe(precision, layers)
        run = RunFolder(recipe.run_folder)
        variables = " ".join(f"{key}={value}" for key, value in rank_environment(recipe).items())
        arguments = megatron_arguments(recipe, LoadPlan("scratch"), 0, run.checkpoints, None)
        parts += [
            f"# {precision}: {layers} layers, {estimate_memory(recipe).total:.1f} of {memory_limit(recipe):.1f} GiB estimated",
            f"{variables} {' '.join(launch_command(recipe, run, str(run.logs / 'launch-0001')))}",
            f"#   {' '.join(arguments)}",
        ]
    peer = [*_torchrun(recipe), "-m", "benchmarks.megatron_loop", str(bench.folder / "megatron-1.json")]
    return "\n".join([*parts, "# Megatron's own loop, with the first one's arguments", " ".join(peer)])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="overrides of the recipe, for all precisions",
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of every run (default 200)")
    parser.add_argument(
        "--precision",
        action="append",
        help=f"recipes to measure after {BASELINE} (default: {', '.join(PRECISIONS[1:])})",
    )
    parser.add_argument("--model", default="llama3.1_8b", help="model recipe (default llama3.1_8b)")
    parser.add_argument("--layers", type=int, help="layers (default: as many as fit)")
    parser.add_argument(
        "--sequence-length", type=int, default=8192, help="tokens per sequence (default 8192)"
    )
    parser.add_argument("--global-batch", type=int, default=4, help="sequences per step and GPU (default 4)")
    parser.add_argument("--text", type=Path, help="jsonl or parquet to train on (default: the demo's text)")
    parser.add_argument(
        "--folder", type=Path, help="folder for data, runs and losses.csv (default: temporary)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run; start nothing")
    parser.add_argument("--device", default="h100", help="with --dry-run: the GPU to plan for (default h100)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measures; exits with code 2 and one message if it cannot."""
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            _measure(options, (options.folder or Path(temporary)).resolve())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _measure(options: argparse.Namespace, folder: Path) -> None:
    gpus = Gpus(options.device, 1, None) if options.dry_run else find_gpus()
    precisions = [BASELINE, *(name for name in options.precision or PRECISIONS[1:] if name != BASELINE)]
    bench = write_run(folder, options, gpus)
    most = load_recipe(str(bench.run), bench.overrides).model.layers
    layers = options.layers or layers_that_fit(bench.recipe, precisions, most)
    if options.dry_run:
        print(dry_run(bench, precisions, layers))
        return
    prepare_data(bench, layers)
    measured = run_fitting(bench, precisions, layers, WARM)
    with (folder / "losses.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["step", *measured["losses"]])
        table.writerows(
            zip(range(1, options.steps + 1), *measured["losses"].values(), strict=True),
        )
    found = measured["overhead"]
    print(result_table(measured["results"]))
    print()
    print(loss_table(measured["losses"]))
    print(f"\nover plain Megatron: {found['overhead_percent']:+.2f} % time per step")
    print(json.dumps([asdict(result) for result in measured["results"]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
