"""Kills `emma pack run` with SIGKILL at random moments, repeatedly, and compares the store it finally writes.

    python -m benchmarks.pack_kills --folder FOLDER [--kills 20] [--megabytes 100] [--seed 1]

Text and tokenizer are those of benchmarks/pack.py. Each kill comes at a random moment within the time of an uninterrupted
pack, alternately to all processes and to the parent alone (its workers then end by themselves). If a pack finishes before
its kill, its store is compared and the next pack starts from scratch; the last one runs to its end. The last line is
JSON; the exit code is 1 if a store differs from the uninterrupted one in any byte (manifests, which hold times, are
compared by their outputs).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson

from benchmarks.pack import write_megabytes, write_run
from benchmarks.real_text import fetch, write_jsonl
from benchmarks.tekken import write_tekken
from emma.base.manifest import MANIFEST_NAME, Manifest


def contents(component: Path) -> dict[str, str]:
    """SHA-256 of every file below a component; for the manifest, of its outputs and counts."""
    found = {}
    for path in sorted(component.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.name == MANIFEST_NAME:
            manifest = Manifest.read(component)
            content = repr((manifest.outputs, manifest.counts, manifest.extra)).encode()
        found[str(path.relative_to(component))] = hashlib.sha256(content).hexdigest()
    return found


def start(run: Path) -> subprocess.Popen[bytes]:
    """Starts `emma pack run` in its own process group."""
    command = [sys.executable, "-P", "-m", "emma.cli", "pack", "run", str(run), "--workers", "2"]
    return subprocess.Popen(
        command,
        env={**os.environ, "EMMA_PROGRESS": "0"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(run: Path) -> None:
    """Runs a pack to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = start(run)
    if code := process.wait():
        raise subprocess.CalledProcessError(code, process.args)


def killed(run: Path, moment: float, *, everyone: bool) -> bool:
    """Starts a pack and kills it after `moment` seconds; False if it had already ended.

    Raises:
        subprocess.CalledProcessError: it ended with an error.
    """
    process = start(run)
    try:
        if code := process.wait(moment):
            raise subprocess.CalledProcessError(code, process.args)
        return False
    except subprocess.TimeoutExpired:
        if everyone:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for text, tokenizer and stores")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=100, help="text to pack (default 100)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_tekken(folder / "tekken")
    whole_text = folder / "text-300.jsonl"
    if not whole_text.is_file():
        write_jsonl(fetch(folder), whole_text, 300)
    text = write_megabytes(whole_text, folder / "kills.jsonl", options.megabytes)
    runs = {name: write_run(folder, text, name) for name in ("whole", "killed")}
    stores = {name: folder / "store" / name for name in runs}
    for store in stores.values():
        shutil.rmtree(store, ignore_errors=True)
    begin = time.perf_counter()
    finish(runs["whole"])
    seconds = time.perf_counter() - begin
    expected = contents(stores["whole"] / "web")
    print(f"uninterrupted: {seconds:.1f} s, {len(expected)} files", flush=True)
    chooser = random.Random(options.seed)
    kills, packs, equal = 0, 0, True

    def compare() -> bool:
        same = contents(stores["killed"] / "web") == expected
        print(f"store after {kills} kills: {'equal' if same else 'DIFFERENT'}", flush=True)
        return same

    while kills < options.kills:
        moment = chooser.uniform(0, seconds)
        if killed(runs["killed"], moment, everyone=kills % 2 == 0):
            kills += 1
            print(f"kill {kills} after {moment:.2f} s", flush=True)
        else:
            packs += 1
            equal = compare() and equal
            shutil.rmtree(stores["killed"])
    finish(runs["killed"])
    equal = compare() and equal
    print(orjson.dumps({"kills": kills, "packs_finished": packs + 1, "byte_identical": equal}).decode())
    for store in stores.values():
        shutil.rmtree(store)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
