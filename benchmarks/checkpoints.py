"""Bytes that each rank reads and writes, and host memory that it takes, at a save and a load, against the plan.

    python -m benchmarks.checkpoints [--ranks 2 4 8] [--folder DIR]

Builds a small model with Megatron in forked ranks on the CPU, saves it (blocking, then in the background), and loads
it in new ranks, one layout after another. Bytes are /proc's `rchar` and `wchar` of the rank, less what it exchanges
with other ranks; memory is its peak resident set less what it held before. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import LoadPlan
from benchmarks.checkpoint_ranks import load_rank, save_rank
from tests.ranks import run_ranks
from tests.small_recipe import write_small_run

LAYOUTS = {2: (1, 1), 4: (2, 1), 8: (2, 1)}
"""Tensor- and pipeline-parallel size by number of ranks."""


def small_recipe(folder: Path, ranks: int, *overrides: str) -> Recipe:
    """A model of 38 million weights in BF16 on so many CPU ranks."""
    tensor, pipeline = LAYOUTS[ranks]
    return load_recipe(
        write_small_run(folder),
        [
            "model.layers=8",
            "model.hidden_size=512",
            "model.ffn_hidden_size=1536",
            "model.attention_heads=8",
            "model.query_groups=4",
            "model.vocab_size=8192",
            "precision={name: bf16, compute: bf16}",
            f"cluster.gpus_per_node={ranks}",
            f"parallelism={{tensor: {tensor}, pipeline: {pipeline}}}",
            *overrides,
        ],
    )


def main():
    from emma.recipes.load import write_recipe
    for ranks in map(int, sys.argv[1:] or [2,4,8]):
        with tempfile.TemporaryDirectory() as name:
            recipe = small_recipe(Path(name), ranks)
            write_recipe(recipe, Path(name)/"recipe.yaml")
            from emma.tools.arithmetic.cost import checkpoint_bytes
            from emma.tools.arithmetic.parameters import rank_parameters, total_parameters
            n = rank_parameters(recipe.model, LAYOUTS[ranks][0], 1, 0).total; D=recipe.data_parallel
            print(ranks, "N", n, total_parameters(recipe.model), "14N/D", 14*n/D/1e6, "12N/D", 12*n/D/1e6, "2N", 2*n/1e6)
            Path(name,"ck").mkdir()
            s = run_ranks(save_rank, ranks, str(Path(name)/"recipe.yaml"), name+"/ck", timeout=400)
            size=sum(p.stat().st_size for p in Path(name,"ck").rglob("*") if p.is_file())
            print("size", size/1e6, checkpoint_bytes(recipe)/1e6, (Path(name,"ck/iter_0000001/.metadata").stat().st_size)/1e6)
            for r in s: print({k: round(v/1e6,2) if k!="seconds" else round(v,2) for k,v in r.items()})
            l = run_ranks(load_rank, ranks, str(Path(name)/"recipe.yaml"), name+"/ck", timeout=400)
            for r in l: print({k: round(v/1e6,2) if k!="seconds" else round(v,2) for k,v in r.items()})
            print("total read", sum(r["read"] for r in l)/size)


if __name__ == "__main__":
    main()
