"""How fast samples reach a rank: read by the rank itself and by worker processes, from a fast and from a slow disk.

    python -m benchmarks.loader --folder FOLDER [--read-ms 1] [--tokens 300]

Builds a mix of 8,192-token samples from documents of `--tokens` tokens on average (benchmarks/synthetic_store.py), opens
it as a rank on a GPU does, documents' boundaries included, and reads it through torch's data loader in the rank and in
1, 2 and 4 worker processes. On the slow disk every read of a document takes `--read-ms` longer: a shared file system
that answers from a disk. Beside each rate stands what the fastest shipped layout needs: each tensor-parallel rank reads
for itself. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mix import build, dataset_config, make_store
from emma.recipes.compose import list_names
from emma.recipes.load import load_recipe
from emma.tools.plan.throughput import expected_throughput

_DOCUMENTS = 60_000
_SHARES = {"monolingual": 55, "bilingual": 45}
_SECONDS = 8.0


def needed() -> tuple[str, float]:
    """The shipped H100 layout whose ranks need the most samples a second, and how many."""
    rates = {}
    for layout in list_names("layouts"):
        if layout.startswith("h100") and not layout.endswith("like_for_like"):
            recipe = load_recipe("emma_llama3_8b_bi", [f"layout={layout}"])
            speed = expected_throughput(recipe)
            assert speed is not None
            group = recipe.parallelism.tensor * recipe.parallelism.pipeline * recipe.parallelism.context
            rates[layout] = speed.tokens_per_second_per_gpu * group / recipe.batch.sequence_length
    return max(rates.items(), key=lambda item: item[1])


def rate(mix: Path, workers: int, wait: float) -> dict[str, float]:
    """Samples a second through torch's loader over `_SECONDS`, after the first that each worker reads."""
    import torch

    from emma.tools.training.dataset import open_dataset

    dataset = open_dataset(mix / "train", dataset_config(inter_document_masking=True))
    read = dataset.dataset.get

    def slow(*place: Any) -> np.ndarray:
        """A read from a disk that needs `wait` seconds more."""
        time.sleep(wait)
        return read(*place)

    dataset.dataset.get = slow
    loader = iter(torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=workers))
    for _ in range(max(1, 2 * workers)):
        next(loader)
    count, begun, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < _SECONDS:
        next(loader)
        count += 1
    seconds = time.perf_counter() - begun
    return {
        "samples_per_second": round(count / seconds, 1),
        "rank_ms_per_sample": round(1000 * (time.process_time() - processor) / count, 2),
    }


def main() -> None:
    """Measures; prints a row per disk and number of workers and a JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="gets a store and a mix")
    parser.add_argument("--read-ms", type=float, default=1.0, help="delay of each read on the slow disk")
    parser.add_argument("--tokens", type=int, default=300, help="mean tokens of a document")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    store = make_store(options.folder / f"store-{options.tokens}", _DOCUMENTS, options.tokens)
    name = f"loader-{options.tokens}"
    build(options.folder, store, name, _DOCUMENTS * options.tokens, _SHARES)
    mix = options.folder / "mix" / name
    starts = np.load(mix / "train" / "samples.npy", mmap_mode="r")[:, 0]
    reads = float(np.diff(starts).mean()) + 1
    layout, need = needed()
    print(f"{layout} needs {need:.2f} samples/s a rank; a sample is {reads:.1f} reads")
    results = []
    for (disk, wait), workers in itertools.product(
        (("fast", 0.0), ("slow", options.read_ms / 1000)), (0, 1, 2, 4)
    ):
        row = {"disk": disk, "workers": workers, **rate(mix, workers, wait)}
        row["times_needed"] = round(row["samples_per_second"] / need, 1)
        results.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(json.dumps({"layout": layout, "needed": round(need, 2), "reads_per_sample": round(reads, 1),
                      "read_ms": options.read_ms, "rates": results}))  # fmt: skip


if __name__ == "__main__":
    main()
