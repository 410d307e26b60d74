"""Bytes that each rank reads and writes, and host memory that it takes, at a save and a load, against the plan.

    python -m benchmarks.checkpoints [--ranks 2 4 8] [--simulate] [--checkpoint DIR]

Builds a model of 59 million weights with Megatron in forked ranks on the CPU, saves it (waiting, then in the
background) and loads it in new ranks, for each number of ranks. `--simulate` adds what each rank of Llama 3 8B on 8,
64 and 512 GPUs would move, as Megatron and the patches deal it. `--checkpoint` names an import of a model
(`emma convert hf-to-megatron`), which four ranks then load layer by layer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_ranks import load_by_layer_rank, load_rank, save_rank
from emma.recipes.load import load_recipe, write_recipe
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.cost import checkpoint_bytes
from emma.tools.arithmetic.traffic import checkpoint_traffic
from tests.ranks import run_ranks
from tests.small_recipe import write_small_run

__all__ = ["compare", "model_recipe"]

TENSOR = {2: 1, 4: 2, 8: 2}
"""Tensor-parallel size by number of ranks."""

FORKED_WRITER_MIB = 64
"""Memory of the rank that a forked writer touches, and so has twice. Fitted; a real run's writer is a process of its
own, which needs a GPU (`tools/arithmetic/traffic.py` counts it)."""

_LAYERS = 16


def model_recipe(folder: Path, ranks: int, layers: int = _LAYERS) -> Recipe:
    """A model in BF16 on so many CPU ranks: 8 million weights, and 3 million for each layer."""
    tensor = TENSOR[ranks]
    return load_recipe(
        write_small_run(folder),
        [
            f"model.layers={layers}",
            "model.hidden_size=512",
            "model.ffn_hidden_size=1536",
            "model.attention_heads=8",
            "model.query_groups=4",
            "model.vocab_size=8192",
            "precision={name: bf16, compute: bf16}",
            f"cluster.gpus_per_node={ranks}",
            f"parallelism={{tensor: {tensor}, sequence: {str(tensor > 1).lower()}}}",
        ],
    )


def compare(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Saves and loads with a recipe's layout.

    Returns:
        For each quantity, `measured` (of the rank with the most, in MiB), `planned` and their `ratio`; `read_all`,
        bytes read by all ranks over the bytes of the checkpoint's files; seconds, and `size_ratio` of the files to
        the plan.
    """
    ranks = recipe.cluster.world_size
    write_recipe(recipe, folder / "recipe.yaml")
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    job = (ranks, str(folder / "recipe.yaml"), str(checkpoints))
    saves = run_ranks(save_rank, *job, timeout=600)
    loads = run_ranks(load_rank, *job, timeout=600)
    size = sum(path.stat().st_size for path in (checkpoints / "iter_0000001").rglob("*") if path.is_file())
    plan = checkpoint_traffic(recipe, 1.0)
    pairs = {
        "written": (max(each["save"]["written"] for each in saves), plan.written_gib),
        "read": (max(each["read"] for each in loads), plan.read_gib),
        "memory_save": (max(each["save"]["memory"] for each in saves), plan.host_save_gib),
        "memory_background": (
            max(each["background"]["memory"] for each in saves),
            plan.host_save_gib + FORKED_WRITER_MIB / 1024,
        ),
        "memory_load": (max(each["memory"] for each in loads), plan.host_load_gib),
    }
    return {
        "ranks": ranks,
        "tensor": recipe.parallelism.tensor,
        **{
            name: {
                "measured": round(found / 2**20, 1),
                "planned": round(planned * 1024, 1),
                "ratio": round(found / 2**30 / planned, 3),
            }
            for name, (found, planned) in pairs.items()
        },
        "read_all": round(sum(each["read"] for each in loads) / size, 4),
        "size_ratio": round(size / checkpoint_bytes(recipe), 4),
        "seconds": {
            "save": round(max(each["save"]["seconds"] for each in saves), 2),
            "background": round(max(each["background"]["seconds"] for each in saves), 2),
            "load": round(max(each["seconds"] for each in loads), 2),
        },
    }


def simulate_sizes() -> list[dict[str, Any]]:
    """Llama 3 8B on 8, 64 and 512 GPUs: GiB that a rank would write, and read to resume, against the plan."""
    from emma.tools.plan.simulate import simulate

    found = []
    for gpus in (8, 64, 512):
        recipe = load_recipe("emma_llama3_8b_bi", [f"layout=h100_{gpus}_bf16"])
        traffic = simulate(recipe).ranks[0]["traffic"]
        plan = checkpoint_traffic(recipe, 1.0)
        found.append(
            {
                "ranks": gpus,
                "data_parallel": len(traffic["bytes"]),
                "most_gib": round(max(traffic["bytes"]) / 2**30, 4),
                "least_gib": round(min(traffic["bytes"]) / 2**30, 4),
                "planned_gib": round(plan.written_gib, 4),
                "host_gib": round(max(traffic["rows"]) / 2**30, 4),
                "planned_host_gib": round(plan.host_load_gib, 4),
                "most_blocks": max(traffic["blocks"]),
            }
        )
        print(found[-1], flush=True)
    return found


def load_import(checkpoint: Path) -> list[dict[str, Any]]:
    """Four ranks load an import, in three layouts; bytes read by all over the bytes of its weights."""
    found = []
    for tensor in (1, 2, 4):
        ranks = run_ranks(load_by_layer_rank, 4, str(checkpoint), tensor, timeout=3600)
        read, stored = sum(rank["read"] for rank in ranks), ranks[0]["stored"]
        found.append(
            {
                "tensor": tensor,
                "data_parallel": 4 // tensor,
                "read_gib": [round(rank["read"] / 2**30, 3) for rank in ranks],
                "stored_gib": round(stored / 2**30, 3),
                "read_all": round(read / stored, 5),
                "differing_tensors": sum(rank["different"] for rank in ranks),
                "compared_tensors": sum(rank["compared"] for rank in ranks),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Measures; prints one JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ranks", type=int, nargs="*", choices=sorted(TENSOR), default=sorted(TENSOR), help="(default 2 4 8)"
    )
    parser.add_argument("--simulate", action="store_true", help="also simulate 8, 64 and 512 GPUs")
    parser.add_argument("--checkpoint", type=Path, help="an import of a model, to load on four ranks")
    options = parser.parse_args()
    result: dict[str, Any] = {"layouts": []}
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as name:
            result["layouts"].append(compare(Path(name), model_recipe(Path(name), ranks)))
        print(result["layouts"][-1], flush=True)
    if options.simulate:
        result["simulated"] = simulate_sizes()
    if options.checkpoint:
        result["import"] = load_import(options.checkpoint)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
