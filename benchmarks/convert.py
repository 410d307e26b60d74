"""Time and memory of converting a full-size model in both directions, against copying and hashing its bytes.

    python -m benchmarks.convert [--model llama3_8b] [--layers N] [--folder DIR] [--transformers]

Makes a model of random BF16 weights (16 GB for Llama 3 8B), then copies its files and hashes the copy, imports it,
and exports the import, each in its own process with the input dropped from the page cache. Files are deleted once no
longer needed, so free disk of twice the model's size is enough. At the end the SHA-256 of every exported tensor is
compared with that of the original. `--transformers` also times `from_pretrained` and `save_pretrained`, which need as
much memory as the model is large. Peak anonymous memory is sampled from /proc every 10 ms. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.files import sha256_file
from emma.base.page_cache import forget
from emma.recipes.load import load_section
from emma.recipes.schema.model import Shape

if TYPE_CHECKING:
    import torch

_BLOCK_ROWS = 4096
_WINDOWS = 1 << 20
_SAMPLE_SECONDS = 0.01


def make_model(folder: Path, shape: Shape) -> None:
    """Writes a Hugging Face folder of random BF16 weights, holding no more than a block of them in memory."""
    import torch

    from emma.base.files import write_json
    from emma.checkpoints_conversion.config import TokenIds, hf_config
    from emma.checkpoints_conversion.parameters import parameter_shapes
    from emma.checkpoints_conversion.safetensors_files import OutgoingTensor, write_shards

    shapes = parameter_shapes(shape)
    largest = max(min(_BLOCK_ROWS, sizes[0]) * math.prod(sizes[1:]) for sizes in shapes.values())
    # Drawn once: every block is another window of it, so that no two are equal and drawing takes no time worth naming.
    drawn = torch.empty(largest + _WINDOWS).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(torch.bfloat16)

    def blocks(number: int, sizes: tuple[int, ...]) -> Iterator[torch.Tensor]:
        for first in range(0, sizes[0], _BLOCK_ROWS):
            rows = min(_BLOCK_ROWS, sizes[0] - first)
            start = (number * 7919 + first * 31) % _WINDOWS
            yield drawn[start : start + rows * math.prod(sizes[1:])].view(rows, *sizes[1:])

    folder.mkdir(parents=True)
    tensors = [
        OutgoingTensor(name, torch.bfloat16, sizes, functools.partial(blocks, number, sizes))
        for number, (name, sizes) in enumerate(shapes.items())
    ]
    write_shards(folder, tensors, 5_000_000_000)
    write_json(folder / "config.json", hf_config(shape, dtype="bfloat16", tokens=TokenIds(128000, (128001,))))


def copy_and_hash(source: Path, destination: Path) -> None:
    """The yardstick: copies the same bytes to disk and hashes them once."""
    destination.mkdir()
    for path in source.glob("*.safetensors"):
        shutil.copyfile(path, destination / path.name)
        descriptor = os.open(destination / path.name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        sha256_file(destination / path.name)


def copy_alone(source: Path, destination: Path) -> None:
    """What `cp` does: nothing is hashed, and nothing is known to be on disk."""
    destination.mkdir()
    for path in source.glob("*.safetensors"):
        shutil.copyfile(path, destination / path.name)


def transformers_load_and_save(source: Path, destination: Path) -> None:
    """What a user of transformers would do."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(destination)


def run_phase(phase: str, source: Path, destination: Path) -> None:
    """Does the work of one phase, in its own process."""
    if phase == "copy":
        copy_and_hash(source, destination)
    elif phase == "cp":
        copy_alone(source, destination)
    elif phase == "transformers":
        transformers_load_and_save(source, destination)
    elif phase == "extend":
        from emma.checkpoints_conversion.extend_vocabulary import extend_vocabulary

        extend_vocabulary(source, destination, source.parent / "tokenizer")
    elif phase == "import":
        from emma.checkpoints_conversion.hf_to_megatron import convert

        convert(source, destination)
    else:
        from emma.checkpoints_conversion.megatron_to_hf import convert as export

        export(source, destination)


def drop_from_cache(folder: Path) -> None:
    """Drops a folder from the page cache, so that each phase starts with a cold input."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())  # what is not written yet stays
                forget(handle.fileno())


def anonymous_bytes(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines())
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == "RssAnon:"), 0)


def measure(phase: str, source: Path, destination: Path) -> dict[str, float]:
    """Runs a phase; returns `seconds` (including Python's start), `processor_seconds` and `peak_anonymous_gib`."""
    drop_from_cache(source)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "benchmarks.convert", "--phase", phase, str(source), str(destination)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "EMMA_PROGRESS": "0"})
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{phase} failed with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{phase}: {seconds:.1f} s, {processor:.1f} s of processors, peak anonymous memory {peak / 2**30:.2f} GiB",
        flush=True,
    )
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "peak_anonymous_gib": round(peak / 2**30, 3),
    }


def compare_hashes(before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether two models hold the same tensors by SHA-256; prints how many are equal."""
    same = sum(after.get(name) == checksum for name, checksum in before.items())
    print(f"{same} of {len(before)} tensors have equal SHA-256; {len(after)} were exported", flush=True)
    return same == len(before) == len(after)


def main() -> None:
    """Measures; prints one JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama3_8b", help="model recipe (default llama3_8b)")
    parser.add_argument("--layers", type=int, help="use fewer layers, for a quick look")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder for scratch files"
    )
    parser.add_argument(
        "--transformers", action="store_true", help="also time loading and saving with transformers"
    )
    parser.add_argument("--phase", nargs=3, metavar=("PHASE", "SRC", "DST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        run_phase(options.phase[0], Path(options.phase[1]), Path(options.phase[2]))
        return
    from emma.base.staging import check_free_space
    from emma.checkpoints_conversion.parameters import parameter_shapes
    from emma.checkpoints_conversion.release.weights import tensor_hashes

    model = load_section("model", options.model)
    values = model.model_dump(include=set(Shape.model_fields))
    shape = Shape.model_validate(values | ({"layers": options.layers} if options.layers else {}))
    size = 2 * sum(math.prod(sizes) for sizes in parameter_shapes(shape).values())
    check_free_space(options.folder, int(2.1 * size))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="emma-convert-", dir=options.folder) as name:
        root = Path(name)
        base, copy, megatron, back = (root / part for part in ("base", "copy", "megatron", "back"))
        start = time.perf_counter()
        make_model(base, shape)
        print(
            f"{size / 1e9:.2f} GB of random weights, made in {time.perf_counter() - start:.1f} s", flush=True
        )
        hashes = tensor_hashes(base)
        results["copy"] = measure("copy", base, copy)
        shutil.rmtree(copy)
        if options.transformers:
            results["transformers"] = measure("transformers", base, copy)
            shutil.rmtree(copy)
        results["import"] = measure("import", base, megatron)
        shutil.rmtree(base)
        results["export"] = measure("export", megatron, back)
        shutil.rmtree(megatron)
        same = compare_hashes(hashes, tensor_hashes(back))
    yardstick = results["copy"]["seconds"]
    print(
        json.dumps(
            {
                "import_ratio_to_copy": round(results["import"]["seconds"] / yardstick, 3),
                "export_ratio_to_copy": round(results["export"]["seconds"] / yardstick, 3),
                "import_peak_anonymous_gib": results["import"]["peak_anonymous_gib"],
                "export_peak_anonymous_gib": results["export"]["peak_anonymous_gib"],
                "equal_sha256": same,
                "gigabytes": round(size / 1e9, 3),
                "seconds": {phase: result["seconds"] for phase, result in results.items()},
                "peak_anonymous_gib": {
                    phase: result["peak_anonymous_gib"] for phase, result in results.items()
                },
            }
        ),
        flush=True,
    )
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
