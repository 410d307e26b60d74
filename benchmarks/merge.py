"""Time and memory of merging models of a full-size shape, against mergekit and against reading the inputs twice.

    python -m benchmarks.merge --mergekit PYTHON [--model llama3_8b] [--layers 4] [--method task_vector] [--rounds 2]

Makes three models of random BF16 weights, a base and two that differ from it by noise, and in each round, with the
inputs dropped from the page cache before each: reads them (once, timed; twice is that doubled), merges them with `emma
convert merge`, and with mergekit in the Python that `--mergekit` names. Both compute in FP32 and write BF16; the results
are compared bit for bit. Each runs in a process of its own, its result is deleted before the next. Four times one
model's size of free disk is enough. Peak anonymous memory is sampled from /proc. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.convert import anonymous_bytes, drop_from_cache
from emma.base.files import write_json, write_text
from emma.recipes.load import load_section
from emma.recipes.schema.model import Shape

if TYPE_CHECKING:
    import torch

_ROWS = 1024
_WINDOWS = 1 << 20
_READ = 8 << 20
METHODS = {"task_vector": "task_arithmetic", "ties": "ties", "linear": "linear"}
MODELS = ("base", "one", "two")


def make_models(root: Path, shape: Shape) -> None:
    """Three folders of BF16 weights: windows of numbers drawn once, and for the descendants other windows added."""
    import torch

    from emma.checkpoints_conversion.config import TokenIds, hf_config
    from emma.checkpoints_conversion.parameters import parameter_shapes
    from emma.checkpoints_conversion.safetensors_files import OutgoingTensor, write_shards

    shapes = parameter_shapes(shape)
    largest = max(min(_ROWS, sizes[0]) * math.prod(sizes[1:]) for sizes in shapes.values())
    drawn = torch.empty(largest + _WINDOWS).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))

    def blocks(model: int, number: int, sizes: tuple[int, ...]) -> Iterator[torch.Tensor]:
        for first in range(0, sizes[0], _ROWS):
            rows = min(_ROWS, sizes[0] - first)
            count = rows * math.prod(sizes[1:])
            start = (number * 7919 + first * 31) % _WINDOWS
            values = drawn[start : start + count]
            if model:
                other = (start + 104_729 * model) % _WINDOWS
                values = values + 0.1 * drawn[other : other + count]
            yield values.to(torch.bfloat16).view(rows, *sizes[1:])

    for model, name in enumerate(MODELS):
        (root / name).mkdir(parents=True)
        tensors = [
            OutgoingTensor(parameter, torch.bfloat16, sizes, functools.partial(blocks, model, number, sizes))
            for number, (parameter, sizes) in enumerate(shapes.items())
        ]
        write_shards(root / name, tensors, 5_000_000_000)
        write_json(root / name / "config.json", hf_config(shape, dtype="bfloat16", tokens=TokenIds(0, (1,))))
        drop_from_cache(root / name)


def recipes(root: Path, method: str) -> tuple[str, dict[str, Any]]:
    """Ours as YAML, mergekit's as a mapping."""
    extra = "density: 0.3\n" if method == "ties" else ""
    base = "" if method == "linear" else f"base: {{path: {root / 'base'}}}\n"
    names = MODELS if method == "linear" else MODELS[1:]
    weights = {"base": 0.3, "one": 1.0, "two": 0.7}
    lines = "".join(f"  - {{path: {root / name}, weight: {weights[name]}}}\n" for name in names)
    density = {"density": 0.3} if method == "ties" else {}
    theirs: dict[str, Any] = {
        "merge_method": METHODS[method],
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "models": [{"model": str(root / n), "parameters": {"weight": weights[n]} | density} for n in names],
    }
    if method != "linear":
        theirs["base_model"] = str(root / "base")
    return f"method: {method}\n{base}{extra}models:\n{lines}", theirs


def read_inputs(root: Path) -> None:
    """The yardstick: every byte of the three models, to nowhere."""
    buffer = bytearray(_READ)
    for name in MODELS:
        for path in sorted((root / name).glob("*.safetensors")):
            with path.open("rb", buffering=0) as handle:
                while handle.readinto(buffer):
                    pass


def measure(command: list[str], inputs: Path) -> dict[str, float]:
    """Runs a command on cold inputs; returns wall and processor seconds (with Python's start) and peak memory."""
    drop_from_cache(inputs)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, env={**os.environ, "EMMA_PROGRESS": "0"}, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(spent, 2),
        "peak_gib": round(peak / 2**30, 3),
    }


def unlike(one: Path, other: Path) -> tuple[int, int]:
    """How many values of two models differ, of how many."""
    from emma.checkpoints_conversion.safetensors_files import SafetensorsReader
    from emma.checkpoints_conversion.slicing import row_blocks

    a, b = SafetensorsReader(one), SafetensorsReader(other)
    if a.records.keys() != b.records.keys():
        raise SystemExit("the results hold different parameters")
    different = total = 0
    for name, record in a.records.items():
        for rows in row_blocks(record.shape):
            with a.open(name, rows) as x, b.open(name, rows) as y:
                different += int((x != y).sum())
                total += x.numel()
    return different, total


def main() -> None:
    """Measures; prints one JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", help="a Python that has mergekit (default: without it)")
    parser.add_argument("--model", default="llama3_8b", help="model recipe (default llama3_8b)")
    parser.add_argument("--layers", type=int, default=4, help="layers of it (default 4)")
    parser.add_argument(
        "--method", choices=METHODS, default="task_vector", help="what is merged (default task_vector)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="times that each is run (default 2)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder for scratch files"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_inputs(options.read)
        return
    from emma.base.staging import check_free_space
    from emma.checkpoints_conversion.parameters import parameter_shapes
    from tests.checkpoints_conversion.merging import peer

    values = load_section("model", options.model).model_dump(include=set(Shape.model_fields))
    shape = Shape.model_validate(values | {"layers": options.layers})
    size = 2 * sum(math.prod(sizes) for sizes in parameter_shapes(shape).values())
    check_free_space(options.folder, int((5.1 if options.mergekit else 4.1) * size))
    found: dict[str, list[dict[str, float]]] = {"read": [], "emma": [], "mergekit": []}
    with tempfile.TemporaryDirectory(prefix="emma-merge-", dir=options.folder) as name:
        root = Path(name)
        inputs, ours, theirs = (root / part for part in ("inputs", "ours", "theirs"))
        make_models(inputs, shape)
        yaml, config = recipes(inputs, options.method)
        write_text(root / "merge.yaml", yaml)
        (root / "jobs.json").write_text(json.dumps([{"config": config, "out": str(theirs)}]))
        commands = {
            "read": [sys.executable, "-m", "benchmarks.merge", "--read", str(inputs)],
            "emma": [
                sys.executable,
                "-P",
                "-m",
                "emma.cli",
                "convert",
                "merge",
                str(root / "merge.yaml"),
                str(ours),
            ],
            "mergekit": [str(options.mergekit), peer.__file__, str(root / "jobs.json")],
        }
        different = None
        for number in range(options.rounds):
            shutil.rmtree(ours, ignore_errors=True)
            for what in commands if options.mergekit else ("read", "emma"):
                found[what].append(measure(commands[what], inputs))
                print(f"round {number + 1}, {what}: {found[what][-1]}", flush=True)
            if options.mergekit and different is None:
                different = unlike(ours, theirs)
            shutil.rmtree(theirs, ignore_errors=True)

    def middle(what: str, key: str) -> float:
        return statistics.median(row[key] for row in found[what])

    result: dict[str, Any] = {
        "gigabytes_per_model": round(size / 1e9, 3),
        "layers": options.layers,
        "method": options.method,
        "ratio_to_reading_twice": round(middle("emma", "seconds") / (2 * middle("read", "seconds")), 3),
        "peak_gib": middle("emma", "peak_gib"),
        "rounds": found,
    }
    if options.mergekit:
        result |= {
            "ratio_to_mergekit": round(middle("emma", "seconds") / middle("mergekit", "seconds"), 3),
            "processor_ratio_to_mergekit": round(
                middle("emma", "processor_seconds") / middle("mergekit", "processor_seconds"), 3
            ),
            "memory_ratio_to_mergekit": round(middle("emma", "peak_gib") / middle("mergekit", "peak_gib"), 3),
            "different_values": different[0] if different else None,
            "values": different[1] if different else None,
        }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
