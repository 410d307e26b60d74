"""Packing, compared with Megatron-LM's own preprocessing on the same text in the same run.

    python -m benchmarks.pack --folder FOLDER [--input TEXT.jsonl] [--workers 2] [--memory]

Ours is the whole command `emma pack run`. The peer does what Megatron-LM's tools/preprocess_data.py does: as many
worker processes encode one document per call with Hugging Face `tokenizers` (control tokens removed, end of text
appended), and the parent adds one document per call with `IndexedDatasetBuilder`. The tokenizer is tekken (131,072
ids); the text, unless given, is that of benchmarks/real_text.py. The last line is JSON.

`--memory` also reports the peak memory of packing the text, its first 100 MB, and ten times as much (repeating the
text with altered words where it is too short).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
from ruamel.yaml import YAML

from benchmarks.measure import measure, seconds_of
from benchmarks.real_text import fetch, write_jsonl
from benchmarks.tekken import write_tekken

_END = "</s>"


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
    folder: Path, text: Path, name: str, workers: int, *, keep: bool = False
) -> tuple[list[str], dict[str, str]]:
    """`emma pack run` into an empty store (or, with `keep`, the one that is there), with its environment."""
    run = write_run(folder, text, name)
    if not keep:
        shutil.rmtree(folder / "store" / name, ignore_errors=True)
    command = [sys.executable, "-P", "-m", "emma.cli", "pack", "run", str(run), "--workers", str(workers)]
    return command, {**os.environ, "EMMA_PROGRESS": "0"}


# ---- the peer -------------------------------------------------------------------------------------------------------


class _Encode:
    """Encodes one line in a worker process."""

    tokenizer: object
    end: int

    @classmethod
    def start(cls, folder: str) -> None:
        from tokenizers import Tokenizer

        content = orjson.loads((Path(folder) / "tokenizer.json").read_bytes())
        cls.end = next(token["id"] for token in content["added_tokens"] if token["content"] == _END)
        content["added_tokens"] = []
        cls.tokenizer = Tokenizer.from_str(orjson.dumps(content).decode())

    @classmethod
    def line(cls, line: bytes) -> list[int]:
        text = orjson.loads(line)["text"]
        return [*cls.tokenizer.encode(text).ids, cls.end]  # type: ignore[attr-defined]


def run_peer(text: Path, folder: Path, target: Path, workers: int) -> None:
    """All the peer's work, in a separate process."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    target.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{target}.bin", dtype=np.int32)
    context = multiprocessing.get_context("fork")
    with (
        context.Pool(workers, initializer=_Encode.start, initargs=(str(folder / "tekken"),)) as pool,
        text.open("rb") as lines,
    ):
        for ids in pool.imap(_Encode.line, lines, 32):
            builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{target}.idx")


def peer_command(folder: Path, text: Path, workers: int) -> tuple[list[str], dict[str, str]]:
    """All the peer's work as a command, with its environment."""
    arguments = ["--as-peer", "--folder", str(folder), "--input", str(text), "--workers", str(workers)]
    command = [sys.executable, "-m", "benchmarks.pack", *arguments]
    return command, {**os.environ, "TOKENIZERS_PARALLELISM": "false"}


def same_tokens(folder: Path, name: str) -> bool:
    """Whether our shards, joined, equal the peer's `.bin` byte for byte."""

    def blocks(paths: list[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as handle:
                while block := handle.read(1 << 24):
                    yield block

    ours = sorted((folder / "store" / name / "web").glob("*.bin"))
    theirs = folder / "peer" / "text.bin"
    if sum(path.stat().st_size for path in ours) != theirs.stat().st_size:
        return False
    import hashlib

    digests = [hashlib.sha256(), hashlib.sha256()]
    for digest, paths in zip(digests, (ours, [theirs]), strict=True):
        for block in blocks(paths):
            digest.update(block)
    return digests[0].digest() == digests[1].digest()


# ---- inputs ---------------------------------------------------------------------------------------------------------


def write_megabytes(text: Path, target: Path, megabytes: int) -> Path:
    """Writes the first `megabytes` MB of a jsonl file, repeated with a letter before each word if it is too short."""
    written, letters = 0, iter("qxzjwkvyhu")
    letter = ""
    with target.open("wb") as handle:
        while True:
            with text.open("rb") as lines:
                for line in lines:
                    record = orjson.loads(line)
                    if letter:
                        record["text"] = record["text"].replace(" ", f" {letter}")
                        line = orjson.dumps(record) + b"\n"
                    handle.write(line)
                    written += len(line)
                    if written >= megabytes * 1_000_000:
                        return target
            letter = next(letters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for text, tokenizer and stores")
    parser.add_argument("--input", type=Path, help="jsonl with the fields id, text, language")
    parser.add_argument("--megabytes", type=int, default=300, help="text to fetch if no input is given")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours, of which the median counts")
    parser.add_argument("--memory", action="store_true", help="also compare the memory of 100 MB and 1 GB")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_tekken(folder / "tekken")
    text: Path = options.input or folder / f"text-{options.megabytes}.jsonl"
    if options.as_peer:
        run_peer(text, folder, folder / "peer" / "text", options.workers)
        return
    if not text.is_file():
        languages = write_jsonl(fetch(folder), text, options.megabytes)
        print(f"{text}: {text.stat().st_size:,} bytes, {languages} languages")
    size = text.stat().st_size / 1e6

    def our_seconds() -> float:
        return seconds_of(*our_command(folder, text, "ours", options.workers))

    # Ours before and after the peer, so that a machine that speeds up or slows down favours neither.
    first = [our_seconds() for _ in range(options.repeats // 2 + 1)]
    peer = seconds_of(*peer_command(folder, text, options.workers))
    runs = first + [our_seconds() for _ in range(options.repeats // 2)]
    ours = statistics.median(runs)
    print(f"ours: {', '.join(f'{run:.2f} s' for run in runs)}; peer: {peer:.2f} s; {size:.1f} MB")
    result = {
        "ratio": peer / ours,
        "identical_ids": same_tokens(folder, "ours"),
        "ours_mb_s": size / ours,
        "peer_mb_s": size / peer,
        "megabytes": size,
        "workers": options.workers,
    }
    if options.memory:
        result["peak_gib"] = measure(*our_command(folder, text, "memory", options.workers)).peak_gib
        for megabytes in (100, 1000):
            part = write_megabytes(text, folder / f"memory-{megabytes}.jsonl", megabytes)
            peak = measure(*our_command(folder, part, "memory", options.workers)).peak_gib
            result[f"peak_gib_{megabytes}_mb"] = peak
            part.unlink()
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
