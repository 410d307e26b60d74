"""Speed of the corpus stages against datatrove's blocks on the same text, one process each, in one run.

    python -m benchmarks.corpus [--input FILE.jsonl] [--megabytes 60] [--folder DIR]

FILE has `text`, `language` and `id`; without one, real text is fetched (benchmarks.real_text). Near duplicates of known
Jaccard index are planted into it. Each side of each stage runs in a process of its own, ours before and after
datatrove's, and the mean counts. Speeds are those of a core: text over processor time, so that other work on the
machine matters little. What is compared:

    integrate   JSON lines → normalised parquet      JsonlReader, FTFYFormatter, ParquetWriter
    filter      all rules                            GopherRepetitionFilter, GopherQualityFilter
    exact       exact duplicates removed             ExactDedupSignature, ExactFindDedups, ExactDedupFilter
    near        MinHash, 20 bands of 6 rows          MinhashDedup{Signature,Buckets,Cluster,Filter}

datatrove's word splitters need packages per language; it is given `\\w+` instead, which is faster than they are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks import datatrove_stages
from emma.recipes.schema.corpus import Corpus, Deduplication, Languages, NearDuplicates, Source

STAGES = ("integrate", "filter", "exact", "near")
NEAR = NearDuplicates()
_PLANTED = 1500


def plant(
    rows: Sequence[dict[str, Any]], seed: int = 1
) -> tuple[list[dict[str, Any]], list[tuple[str, str, float]]]:
    """Adds copies of documents with some words replaced; the pairs' ids and exact Jaccard indices."""
    from emma.tools.corpus.minhash import jaccard, shingle_sets, shingles_of

    chooser = random.Random(seed)
    long = [row for row in rows if len(row["text"].split()) > 100]
    copies, pairs = [], []
    for number, row in enumerate(chooser.sample(long, min(_PLANTED, len(long)))):
        words = row["text"].split()
        for place in chooser.sample(range(len(words)), max(1, len(words) * (number % 20) // 400)):
            words[place] = "".join(chooser.choices("bcdfghjklm", k=8))
        copy = {**row, "id": f"planted-{number}", "text": " ".join(words)}
        values, offsets = shingle_sets(shingles_of([row["text"], copy["text"]], NEAR, "Latn"))
        pairs.append((row["id"], copy["id"], jaccard(values[: offsets[1]], values[offsets[1] :])))
        copies.append(copy)
    everything = [*rows, *copies]
    chooser.shuffle(everything)
    return everything, pairs


# Ours: a build up to the stage before is made once; a run times the stage alone.


def _build(folder: Path, stage: str) -> Any:
    from emma.tools.corpus.stage import Build

    deduplication = Deduplication(exact=stage != "near", near=NEAR if stage == "near" else None)
    source = Source(
        kind="monolingual",
        path=str(folder / "input.jsonl"),
        license="mixed",
        language_column="language",
        id_column="id",
    )
    corpus = Corpus(
        sources={"text": source},
        languages=Languages(labels={"C": "eng_Latn"}),
        deduplication=deduplication,
    )
    return Build(corpus, "benchmark", folder / f"ours-{stage}", "0" * 64)


def ours(folder: Path, stage: str) -> Callable[[], Any]:
    """The stage's run; the stages before it are built first."""
    from emma.tools.corpus.build import stages_of
    from emma.tools.corpus.stage import Stage

    build = _build(folder, stage)
    build.root.mkdir(exist_ok=True)
    wanted = {
        "integrate": "integrated",
        "filter": "filtered",
        "exact": "deduplicated",
        "near": "deduplicated",
    }[stage]
    chosen: Stage | None = None
    for candidate in stages_of(build, wanted):
        if candidate.name == wanted:
            chosen = candidate
            shutil.rmtree(candidate.folder, ignore_errors=True)
        else:
            candidate.run()
    if chosen is None:
        raise ValueError(wanted)
    return chosen.run


def ours_kept(folder: Path, stage: str) -> set[str]:
    """Ids (as in the input) that the stage kept."""
    import pyarrow.parquet as pq

    paths = (_build(folder, stage).root / "deduplicated").glob("monolingual/*/part-*.parquet")
    return {
        i.removeprefix("text/")
        for path in paths
        for i in pq.read_table(path, columns=["id"])["id"].to_pylist()
    }


def measure(folder: Path, side: str, stage: str) -> dict[str, float]:
    """Seconds and peak memory (GiB) of one run, in this process."""
    os.environ["EMMA_PROGRESS"] = "0"
    function = ours(folder, stage) if side == "ours" else datatrove_stages.stage_run(folder, stage, NEAR)
    start, cpu = time.perf_counter(), _cpu_seconds()
    function()
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_gib": _peak_kib() / (1 << 20)}


def _peak_kib() -> int:
    """Of this program; `ru_maxrss` would be that of the process that started it, if that is larger."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _cpu_seconds() -> float:
    """Processor time of this process and its children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _measured(folder: Path, side: str, stage: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.corpus", "--folder", str(folder), "--one", side, stage]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} {stage}:\n{done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def recall_and_precision(
    pairs: Sequence[tuple[str, str, float]], kept: set[str], searched: set[str]
) -> dict[str, float]:
    """Of planted pairs with a Jaccard index of at least 0.8, the share of which one document is gone; of the pairs of
    which one is gone, the share with such an index. Pairs whose documents didn't both come to the stage are left out."""
    inside = [pair for pair in pairs if pair[0] in searched and pair[1] in searched]
    alike = [pair for pair in inside if pair[2] >= NEAR.jaccard]
    found = [pair for pair in inside if pair[0] not in kept or pair[1] not in kept]
    right = [pair for pair in found if pair[2] >= NEAR.jaccard]
    hits = [pair for pair in alike if pair[0] not in kept or pair[1] not in kept]
    return {
        "planted": len(alike),
        "recall": len(hits) / max(len(alike), 1),
        "precision": len(right) / max(len(found), 1),
    }


def prepare(folder: Path, text: Path, megabytes: int) -> tuple[int, int, list[tuple[str, str, float]]]:
    """Writes the input of both sides; documents, bytes of text, and the planted pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, size = [], 0
    with text.open("rb") as handle:
        for line in handle:
            row = orjson.loads(line)
            rows.append({"id": row["id"], "text": row["text"], "language": row["language"]})
            size += len(row["text"].encode())
            if size >= megabytes * 1_000_000:
                break
    rows, pairs = plant(rows)
    size = sum(len(row["text"].encode()) for row in rows)
    (folder / "input.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (folder / "parquet").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "parquet" / "input.parquet", row_group_size=1000)
    return len(rows), size, pairs


def run(folder: Path, text: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """All measurements."""
    documents, size, pairs = prepare(folder, text, megabytes)
    result: dict[str, Any] = {"documents": documents, "megabytes": size / 1e6, "stages": {}}
    for stage in STAGES:
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "datatrove": []}
        for _ in range(rounds):
            for side in ("ours", "datatrove", "ours"):
                runs[side].append(_measured(folder, side, stage))
        seconds = {side: sum(r["cpu_seconds"] for r in found) / len(found) for side, found in runs.items()}
        came = _came(folder, stage, documents, size)
        speeds = {
            "ours_mb_s_core": came["megabytes"] / seconds["ours"],
            "datatrove_mb_s_core": size / 1e6 / seconds["datatrove"],
            "ours_documents_s_core": came["documents"] / seconds["ours"],
            "datatrove_documents_s_core": documents / seconds["datatrove"],
        }
        ratio = speeds["ours_mb_s_core"] / speeds["datatrove_mb_s_core"]
        result["stages"][stage] = {"ratio": ratio, **speeds}
        for side, found in runs.items():
            result["stages"][stage][f"{side}_peak_gib"] = max(r["peak_gib"] for r in found)
            result["stages"][stage][f"{side}_wall_seconds"] = [r["seconds"] for r in found]
            result["stages"][stage][f"{side}_cpu_seconds"] = [r["cpu_seconds"] for r in found]
        print(f"{stage}: {ratio:.2f}×", file=sys.stderr)
    everything = {identifier for pair in pairs for identifier in pair[:2]}
    result["near_ours"] = recall_and_precision(pairs, ours_kept(folder, "near"), _searched(folder))
    result["near_datatrove"] = recall_and_precision(pairs, datatrove_stages.kept(folder), everything)
    return result


def _came(folder: Path, stage: str, documents: int, size: int) -> dict[str, float]:
    """What came into our stage: filters before it may have removed documents."""
    from emma.base.files import read_json

    if stage == "integrate":
        return {"documents": documents, "megabytes": size / 1e6}
    import pyarrow.parquet as pq

    before = "integrated" if stage == "filter" else "filtered"
    root = _build(folder, stage).root
    counts = read_json(root / before / "manifest.json")["counts"]
    accounts = pq.read_table(root / "statistics" / f"accounts-{before}.parquet").to_pylist()
    return {
        "documents": counts["kept"],
        "megabytes": sum(row["bytes"] for row in accounts if row["outcome"] == "kept") / 1e6,
    }


def _searched(folder: Path) -> set[str]:
    import pyarrow.parquet as pq

    paths = (_build(folder, "near").root / "filtered").glob("monolingual/*/part-*.parquet")
    return {
        i.removeprefix("text/")
        for path in paths
        for i in pq.read_table(path, columns=["id"])["id"].to_pylist()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, *options.one)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="benchmark-corpus-"))
    folder.mkdir(parents=True, exist_ok=True)
    text = options.input
    if text is None:
        from benchmarks.real_text import fetch, write_jsonl

        text = folder / "text.jsonl"
        if not text.is_file():
            write_jsonl(fetch(folder), text, options.megabytes)
    result = run(folder, text, options.megabytes, options.rounds)
    if options.folder is None:
        shutil.rmtree(folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
