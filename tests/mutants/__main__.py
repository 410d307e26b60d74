"""Breaks a copy of the project, one mutant at a time, and expects the nearest tests to notice.

    python -m tests.mutants [--only TEXT] [--workers N] [--unchecked]

Each worker has a copy of the working tree, so the tree itself never changes. The tests must pass without a mutant first.
The exit code is 1 if a mutant survives, or an entry is stale.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.entries import ROOT, Mutant, all_mutants

SECONDS = 600.0
"""A mutant whose tests take longer hangs them: it is noticed."""


def copy_tree(folder: Path) -> Path:
    """The tracked and the new files of the working tree, in `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and output of pytest in a copy; 1 where it hangs."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "EMMA_CACHE": str(folder / ".cache"),
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        *tests,
    ]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "timeout"
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutants whose file or description holds this text")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--unchecked", action="store_true", help="leave out the tests without a mutant")
    options = parser.parse_args()
    mutants = [mutant for mutant in all_mutants() if options.only in str(mutant)]
    if stale := [fault for mutant in mutants for fault in mutant.faults()]:
        print("\n".join(stale), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.workers):
            copies.put(copy_tree(Path(name) / str(number)))
        return judge(mutants, copies, options.workers, checked=not options.unchecked)


def judge(mutants: list[Mutant], copies: queue.SimpleQueue[Path], workers: int, *, checked: bool) -> int:
    """Runs the tests without a mutant, then with each."""

    def without(tests: tuple[str, ...]) -> tuple[tuple[str, ...], int, str]:
        folder = copies.get()
        try:
            return tests, *run_tests(folder, tests)
        finally:
            copies.put(folder)

    def with_one(mutant: Mutant) -> tuple[Mutant, int, str, float]:
        folder, begun = copies.get(), time.monotonic()
        try:
            mutant.apply(folder)
            code, said = run_tests(folder, mutant.tests)
            return mutant, code, said, time.monotonic() - begun
        finally:
            shutil.copy2(ROOT / mutant.file, folder / mutant.file)
            copies.put(folder)

    survivors = 0
    with ThreadPoolExecutor(workers) as pool:
        for tests, code, said in pool.map(
            without, sorted({mutant.tests for mutant in mutants}) if checked else ()
        ):
            if code:
                print(f"without any mutant, {' '.join(tests)} fails:\n{said[-3000:]}", file=sys.stderr)
                return 1
        for mutant, code, said, seconds in pool.map(with_one, mutants):
            # 1: a test failed; 2: a module no longer imports.
            died = code in (1, 2)
            survivors += not died
            print(f"{'died' if died else 'SURVIVED'}  {mutant}  ({seconds:.0f} s)", flush=True)
            if code not in (0, 1, 2):
                print(said[-2000:], file=sys.stderr)
    print(f"{len(mutants)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
