"""Packing, compared with Megatron-LM's own preprocessing on the same text in the same run.

    python -m benchmarks.pack --folder FOLDER [--input TEXT.jsonl] [--megabytes 10,40,160,640] [--old 40] [--memory]

Ours is the whole command `emma pack run`, with the certificate of the tokenizer made before. `once` is the same without
the documents that are encoded twice (`fault_share: 1`). The opponents are those of benchmarks/pack_peers.py, each a
whole process. At every size all of them take turns, `--repeats` times. Ours and theirs must give identical ids, document
for document; where a text spells a control token, Megatron's fast script makes one of it, which is counted apart.

The tokenizer is tekken (131,072 ids); the text, unless given, is that of benchmarks/real_text.py, repeated with a letter
before each word where it is too short; every 1,000th document gets a sentence that spells a control token. The last line
is JSON: by size and opponent the medians of wall and processor seconds, and from the smallest and the largest size the
processor seconds that do not depend on it and the MB a processor second beyond them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from ruamel.yaml import YAML

from benchmarks.measure import measure, timed
from benchmarks.real_text import fetch, write_jsonl
from benchmarks.tekken import write_tekken

_END = "</s>"
_SPELLED = " It ends with </s>, not with <SPECIAL_20>."
_SPELLED_EVERY = 1000

Command = tuple[list[str], dict[str, str]]
"""A command line and its environment."""


def write_run(folder: Path, text: Path, name: str) -> Path:
    """Writes a run over one file of text; only its data and tokenizer matter here."""
    run = {
        "name": name,
        "model": {
            "name": "tekken",
            "layers": 1,
            "hidden_size": 64,
            "ffn_hidden_size": 64,
            "attention_heads": 1,
            "query_groups": 1,
            "vocab_size": 131072,
            "max_position_embeddings": 8192,
            "tokenizer": {"path": str(folder / "tekken"), "end_of_text": _END},
        },
        "data": {
            "name": name,
            "pack": {"components": {"web": {"inputs": [str(text)]}}},
            "mix": {"components": {"web": {"share": 1}}},
        },
        "precision": "fp32",
        "cluster": {"name": "cpu", "gpus_per_node": 1, "device": "cpu"},
        "batch": {"micro": 1, "global": 1, "sequence_length": 1024},
        "schedule": {"steps": 1, "learning_rate": 1e-4},
        "start": {"mode": "scratch"},
        "checkpoint": {"interval": 1},
        "paths": {"store": str(folder / "store" / name)},
    }
    path = folder / f"{name}.yaml"
    YAML(typ="safe").dump(run, path)
    return path


def our_command(
    folder: Path, text: Path, name: str, workers: int, *overrides: str, keep: bool = False
) -> Command:
    """`emma pack run` into an empty store (or, with `keep`, the one that is there)."""
    run = write_run(folder, text, name)
    if not keep:
        shutil.rmtree(folder / "store" / name, ignore_errors=True)
    command = [sys.executable, "-P", "-m", "emma.cli", "pack", "run", str(run), "--workers", str(workers)]
    return [*command, *overrides], {**os.environ, "EMMA_PROGRESS": "0"}


def peer_command(folder: Path, text: Path, peer: str, workers: int) -> Command:
    """One of the opponents."""
    arguments = ["--tokenizer", str(folder / "tekken"), "--end", _END, "--input", str(text)]
    arguments += ["--output", str(folder / "peer" / peer), "--workers", str(workers)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if peer == "old":
        environment["TOKENIZERS_PARALLELISM"] = "false"
    return [sys.executable, "-m", "benchmarks.pack_peers", peer, *arguments], environment


# ---- identical ids --------------------------------------------------------------------------------------------------


def _ours(folder: Path, name: str) -> Iterator[np.ndarray]:
    """Ids of our documents, in order."""
    from emma.tools.pack.store import open_component

    component = open_component(folder / "store" / name / "web")
    for shard in component.shards:
        tokens = np.memmap(shard.bin_path, component.dtype, "r")
        for rows in shard.documents(["offset", "tokens"]):
            starts = rows["offset"].to_numpy() // component.dtype.itemsize
            for start, count in zip(starts.tolist(), rows["tokens"].to_numpy().tolist(), strict=True):
                yield tokens[start : start + count]


def _theirs(prefix: Path) -> Iterator[np.ndarray]:
    """Ids of an opponent's documents, in order.

    Read by the lengths alone: the fast script's index counts tokens where Megatron's reader expects documents, and the
    reader refuses it.
    """
    head = 9 + 8 + 1 + 8 + 8  # magic, version, type, sequences, documents
    with Path(f"{prefix}.idx").open("rb") as handle:
        count = int.from_bytes(handle.read(head)[18:26], "little")
        lengths = np.frombuffer(handle.read(4 * count), np.int32)
    tokens = np.memmap(f"{prefix}.bin", np.int32, "r")
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"{prefix}: {len(tokens)} tokens, but its documents have {lengths.sum()}")
    ends = np.cumsum(lengths, dtype=np.int64)
    for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
        yield tokens[start:end]


def compare(folder: Path, name: str, peer: str, text: Path) -> dict[str, int]:
    """Documents whose ids are the same; of the others, those whose text spells a control token, of which the opponent
    made one, and those that differ for no known reason."""
    content = orjson.loads((folder / "tekken" / "tokenizer.json").read_bytes())
    control = {token["content"]: token["id"] for token in content["added_tokens"]}
    found = {"same": 0, "opponent_made_control_tokens": 0, "unexplained": 0}
    with text.open("rb") as lines:
        for line, own, other in zip(lines, _ours(folder, name), _theirs(folder / "peer" / peer), strict=True):
            if np.array_equal(own, other):
                found["same"] += 1
                continue
            spelled = [id_ for token, id_ in control.items() if token in orjson.loads(line)["text"]]
            made = np.isin(other[:-1], spelled).any() and not np.isin(own[:-1], list(control.values())).any()
            found["opponent_made_control_tokens" if made else "unexplained"] += 1
    return found


# ---- inputs ---------------------------------------------------------------------------------------------------------


def write_megabytes(text: Path, target: Path, megabytes: int) -> Path:
    """Writes the first `megabytes` MB of a jsonl file, repeated with a letter before each word if it is too short."""
    written = number = 0
    letters = iter("qxzjwkvyhu")
    letter = ""
    with target.open("wb") as handle:
        while True:
            with text.open("rb") as lines:
                for line in lines:
                    number += 1
                    if letter or number % _SPELLED_EVERY == 0:
                        record = orjson.loads(line)
                        if letter:
                            record["text"] = record["text"].replace(" ", f" {letter}")
                        if number % _SPELLED_EVERY == 0:
                            record["text"] += _SPELLED
                        line = orjson.dumps(record) + b"\n"
                    handle.write(line)
                    written += len(line)
                    if written >= megabytes * 1_000_000:
                        return target
            letter = next(letters)


# ---- the run --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for text, tokenizer and stores")
    parser.add_argument("--input", type=Path, help="jsonl with the fields id, text, language")
    parser.add_argument("--megabytes", default="10,40,160,640", help="sizes of text to pack")
    parser.add_argument(
        "--old", type=int, default=40, help="largest size that the slow script packs too, once"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--repeats", type=int, default=2, help="turns at every size, of which the medians count"
    )
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory of ours")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_tekken(folder / "tekken")
    source: Path = options.input or folder / "text-300.jsonl"
    if not source.is_file():
        languages = write_jsonl(fetch(folder), source, 300)
        print(f"{source}: {source.stat().st_size:,} bytes, {languages} languages")
    sizes = [int(size) for size in options.megabytes.split(",")]
    found: list[dict[str, Any]] = []
    for index, size in enumerate(sizes):
        text = write_megabytes(source, folder / f"part-{size}.jsonl", size)

        def command(name: str, text: Path = text) -> Command:
            if name in ("ours", "once"):
                overrides = [] if name == "ours" else ["data.pack.fault_share=1"]
                return our_command(folder, text, name, options.workers, *overrides)
            return peer_command(folder, text, name, options.workers)

        if index == 0:
            timed(*command("once"))  # makes the tokenizer's certificate
        times: dict[str, list[tuple[float, float]]] = {}
        for turn in range(options.repeats):
            # What was freed just before, fast's gigabytes most of all, may cost the next one: virtual machines give it back.
            for name in random.Random(1000 * size + turn).sample(["ours", "fast", "once", "raw"], 4):
                times.setdefault(name, []).append(timed(*command(name)))
        ids = {"fast": compare(folder, "ours", "fast", text)}
        if size <= options.old:
            times["old"] = [timed(*command("old"))]
            ids["old"] = compare(folder, "ours", "old", text)
        entry: dict[str, Any] = {"megabytes": text.stat().st_size / 1e6, "ids": ids}
        for name, pairs in times.items():
            wall, processor = (statistics.median(values) for values in zip(*pairs, strict=True))
            entry[name] = {"seconds": round(wall, 2), "processor_seconds": round(processor, 2)}
        for peer in times.keys() - {"ours", "once", "raw"}:
            entry[f"times_as_fast_as_{peer}"] = {
                unit: round(entry[peer][unit] / entry["ours"][unit], 2) for unit in entry[peer]
            }
        if options.memory:
            entry["peak_gib"] = round(measure(*command("ours")).peak_gib, 3)
        print(orjson.dumps(entry).decode(), flush=True)
        found.append(entry)
        if size not in (min(sizes), 300):
            text.unlink()
    result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "workers": options.workers, "sizes": found}
    if len(found) > 1:
        small, large = found[0], found[-1]
        for name in ("ours", "once", "fast", "raw"):
            ends = [each[name]["processor_seconds"] for each in (small, large)]
            rate = (large["megabytes"] - small["megabytes"]) / (ends[1] - ends[0])
            result[name] = {
                "fixed_processor_seconds": round(ends[0] - small["megabytes"] / rate, 2),
                "megabytes_a_processor_second": round(rate, 1),
            }
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
