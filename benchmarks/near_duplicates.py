"""Deduplication of millions of documents of one language: time, memory and disk of each phase.

    python -m benchmarks.near_duplicates [--documents 5_000_000] [--memory-gib 0.5] [--folder DIR]

A quarter of the documents are candidates: an eighth are originals, an eighth are copies of these with one word changed.
Every hundredth copy is exact. Each phase runs in a process of its own, one task after the other; the memory is that process's
peak (VmHWM), its libraries included. The text is made up, 20 words a document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emma.recipes.schema.corpus import Corpus, Deduplication, NearDuplicates, Source

_PART = 100_000
"""Documents of a part: of 256 MB of text, such a language has more, longer ones."""
_WORDS = 20


def write_filtered(root: Path, documents: int) -> int:
    """Writes parts of the stage `filtered`; returns the bytes of text."""
    from emma.base.manifest import Manifest, now
    from emma.tools.corpus.accounts import KEPT, Accounts, accounts_path
    from emma.tools.corpus.layout import TEXT_SCHEMA, Part, PartWriter, part_path

    generator = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(generator.choice(letters, 6)) for _ in range(50_000)], object)
    rows: dict[str, int] = {}
    size = 0
    for number, start in enumerate(range(0, documents, _PART)):
        count = min(_PART, documents - start)
        # Documents 0 and 4, 8 and 12, ... are alike: a part's copies follow from its number alone.
        seeds = np.arange(start, start + count)
        copies = seeds % 8 == 4
        originals = np.where(copies, seeds - 4, seeds)
        chosen = _hash(originals[:, None] * _WORDS + np.arange(_WORDS)) % len(words)
        changed = copies & (seeds % 100 != 0)
        chosen[changed, _WORDS - 1] = _hash(seeds[changed]) % len(words)
        texts = [" ".join(row) for row in words[chosen].tolist()]
        size += sum(map(len, texts))
        table = pa.table(
            {
                "id": [f"made/{seed}" for seed in seeds.tolist()],
                "text": texts,
                "language": ["eng_Latn"] * count,
                "source": ["made"] * count,
                "license": ["CC0-1.0"] * count,
            },
            schema=TEXT_SCHEMA,
        )
        part = Part("monolingual", "eng_Latn", number)
        with PartWriter(part_path(root, "filtered", part), TEXT_SCHEMA, ("text",)) as writer:
            for piece in table.to_batches(10_000):
                writer.write(piece)
        rows[part.name] = count
    accounts = Accounts()
    accounts.add("monolingual", "eng_Latn", "made", KEPT, (documents, size, size, documents * _WORDS, 0))
    accounts.write(accounts_path(root, "filtered"), "filtered")
    counts = {"in": documents, "kept": documents, "removed_by": {}}
    Manifest(
        stage="corpus/filtered",
        recipe_sha256="0" * 64,
        inputs=[],
        outputs=[],
        counts=counts,
        versions={},
        started=now(),
        extra={"rows": rows},
    ).write(root / "filtered")
    return size


def _hash(values: np.ndarray) -> np.ndarray:
    from emma.tools.corpus.shingles import mix

    return (mix(values.astype(np.uint64)) >> np.uint64(16)).astype(np.int64)


def stage_of(root: Path, memory_gib: float) -> Any:
    """The stage `deduplicated` of the corpus."""
    from emma.tools.corpus.deduplicate import deduplicate
    from emma.tools.corpus.stage import Build

    source = Source(kind="monolingual", path="made.jsonl", license="CC0-1.0", language="eng")
    near = NearDuplicates(jaccard=0.7)
    deduplication = Deduplication(near=near, counts=True)
    corpus = Corpus(sources={"made": source}, memory_gib=memory_gib, deduplication=deduplication)
    return deduplicate(Build(corpus, "made", root, "0" * 64), "filtered")


def run_phase(root: Path, memory_gib: float, number: int) -> dict[str, Any]:
    """Runs a phase in this process; its tasks, seconds and peak memory."""
    os.environ["EMMA_PROGRESS"] = "0"
    stage = stage_of(root, memory_gib)
    stage.work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tasks = stage.phases[number].plan(stage, stage.results(number))
    stage.run_share(number, 0, 1)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "phase": stage.phases[number].name,
        "tasks": len(tasks),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(peak / (1 << 20), 3),
        "work_gb": round(
            sum(path.stat().st_size for path in stage.work.rglob("*") if path.is_file()) / 1e9, 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=5_000_000)
    parser.add_argument("--memory-gib", type=float, default=0.5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--phase", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase is not None:
        print(json.dumps(run_phase(options.folder, options.memory_gib, options.phase)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="benchmark-near-"))
    size = write_filtered(folder, options.documents)
    phases = []
    for number in range(len(stage_of(folder, options.memory_gib).phases)):
        common = [f"--folder={folder}", f"--memory-gib={options.memory_gib}", f"--phase={number}"]
        command = [sys.executable, "-P", "-m", "benchmarks.near_duplicates", *common]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        phases.append(json.loads(done.stdout.splitlines()[-1]))
        print(phases[-1], file=sys.stderr, flush=True)
    stage = stage_of(folder, options.memory_gib)
    stage.close(stage, stage.results(len(stage.phases)))
    from emma.base.manifest import Manifest

    counts = Manifest.read(folder / "deduplicated").counts
    if options.folder is None:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {"documents": options.documents, "text_gb": size / 1e9, "phases": phases, "counts": counts}
        )
    )


if __name__ == "__main__":
    main()
