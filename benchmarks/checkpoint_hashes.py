"""Speed of the checksums that checkpoints could have, and what they would cost a run.

    python -m benchmarks.checkpoint_hashes [--gib 1] [--rounds 5] [--folder DIR]

Takes each checksum of a buffer in memory and of a file in the page cache (as right after a save), in turn, and counts
processor time, which other processes on the machine hardly change. From the fastest round of the file it computes the
seconds that a checkpoint of 100 GiB costs each rank, if the ranks share the bytes evenly. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from emma.tools.runs import checksums

CHECKPOINT_GIB = 100
RANKS = (1, 8, 64, 512)


class Crc32:
    """zlib's CRC-32 with the interface of a hash."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: Any) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


KINDS: dict[str, Callable[[], Any]] = {
    "xxh3_128": xxhash.xxh3_128,
    "crc32": Crc32,
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "blake2b": hashlib.blake2b,
    "sha512": hashlib.sha512,
}


def seconds_of_cpu(work: Callable[[], object]) -> float:
    """Processor time of this process, system calls included."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    size = int(options.gib * 2**30)
    block = os.urandom(64 << 20)
    checksums.ALGORITHMS.update(KINDS)
    best = {kind: {"memory": float("inf"), "file": float("inf")} for kind in KINDS}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "file"
        with path.open("wb") as handle:
            for _ in range(size // len(block)):
                handle.write(block)
        size = path.stat().st_size
        for _ in range(options.rounds):
            for kind, make in KINDS.items():
                memory = seconds_of_cpu(lambda make=make: make().update(block)) / len(block)
                file = seconds_of_cpu(lambda kind=kind: checksums.checksum_file(path, f"{kind}:")) / size
                best[kind] = {
                    "memory": min(memory, best[kind]["memory"]),
                    "file": min(file, best[kind]["file"]),
                }
    print(
        f"| checksum | memory, MB/s a core | file in the page cache, MB/s a core | {CHECKPOINT_GIB} GiB: "
        + " | ".join(f"{ranks} ranks, s" for ranks in RANKS)
        + " |"
    )
    print("|---|" + "---:|" * (2 + len(RANKS)))
    for kind, per_byte in best.items():
        costs = [CHECKPOINT_GIB * 2**30 * per_byte["file"] / ranks for ranks in RANKS]
        speeds = [1e-6 / per_byte["memory"], 1e-6 / per_byte["file"]]
        cells = [f"{speed:,.0f}" for speed in speeds] + [f"{cost:,.2f}" for cost in costs]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    megabytes = {f"{kind}_file_mb_s": round(1e-6 / value["file"]) for kind, value in best.items()}
    print(json.dumps({"ratio": round(best["sha256"]["file"] / best["xxh3_128"]["file"], 2), **megabytes}))


if __name__ == "__main__":
    main()
