"""Breaks a copy of the project, one mutant at a time, and expects the nearest tests to notice.

    python -m tests.mutants [--only TEXT]... [--workers N]

Each worker has a copy of the working tree, so the tree itself never changes, and may change meanwhile; it has imported
other packages once, and forks a process for each mutant. The tests must pass without a mutant first, so that a fixture
that fails on this machine kills nothing. What killed a mutant is named. The exit code is 1 if a mutant survives, or an
entry is stale.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.mutants.entries import ROOT, Mutant, all_mutants

SECONDS = 900.0
"""A mutant whose tests take longer hangs them: it is noticed."""

MEMORY = 6 << 30
"""Bytes of data that the tests of a mutant may have, which then fail in place of the machine."""

IMPORTED_ONCE = (
    *(
        "numpy",
        "pyarrow.parquet",
        "scipy.stats",
        "torch",
        "tokenizers",
        "pydantic",
        "ruamel.yaml",
        "click",
        "xxhash",
    ),
    *(
        "pytest",
        "hypothesis",
        "transformers",
        "safetensors.torch",
        "sacrebleu",
        "megatron.core",
        "megatron.training",
    ),
)


def copy_tree(folder: Path) -> Path:
    """The tracked and the new files of the working tree, in `folder`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code and output in a copy, from a process of its own; 1 where it hangs."""
    log = folder / ".mutant.log"
    pid = os.fork()
    if pid == 0:
        _be_pytest(folder, tests, log)
    deadline = time.monotonic() + SECONDS
    code = None
    while code is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = 1
        else:
            time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return code, log.read_text(errors="replace")


def _be_pytest(folder: Path, tests: Sequence[str], log: Path) -> None:
    """Never returns."""
    code = 3
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder), "EMMA_CACHE": str(folder / ".cache")}
        for name in [name for name in sys.modules if name.split(".")[0] in ("emma", "tests")]:
            del sys.modules[name]
        sys.path[:] = [str(folder), *(path for path in sys.path if path and Path(path) != ROOT)]
        sys.dont_write_bytecode = True
        import pytest

        code = int(
            pytest.main(["-x", "-q", f"--rootdir={folder}", "-o", f"cache_dir={folder / '.pytest'}", *tests])
        )
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judge(mutants: Iterable[Mutant], folder: Path) -> int:
    """How many mutants survive, or cannot be judged since their tests fail without them."""
    survivors, fine = 0, set()
    for mutant in mutants:
        begun = time.monotonic()
        if mutant.tests not in fine:
            code, said = run_tests(folder, mutant.tests)
            if code:
                print(f"FAILS WITHOUT  {mutant}\n{said[-3000:]}", flush=True)
                survivors += 1
                continue
            fine.add(mutant.tests)
        whole = (folder / mutant.file).read_bytes()
        mutant.apply(folder)
        try:
            code, said = run_tests(folder, mutant.tests)
        finally:
            (folder / mutant.file).write_bytes(whole)
        # 1: a test failed; 2: a module no longer imports; 4 names no test; less than 0: a signal ended the tests.
        died = code in (1, 2) or code < 0
        survivors += not died
        print(f"{'died' if died else 'SURVIVED'}  {mutant}  ({time.monotonic() - begun:.0f} s)", flush=True)
        print(f"      {killer(said)}" if died else said[-2000:], flush=True)
    return survivors


def killer(said: str) -> str:
    """The line of pytest's summary that names the test, or its fixture ("ERROR"), and what it found."""
    named = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return named[0] if named else f"the tests were killed, or took {SECONDS:.0f} s"


def taken(queue: int, mutants: Sequence[Mutant]) -> Iterator[Mutant]:
    """Mutants that no other worker has taken: a pipe holds their numbers, two bytes each, which are read whole."""
    while number := os.read(queue, 2):
        yield mutants[int.from_bytes(number)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", help="mutants whose file or description holds this text; may be repeated"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    mutants = [
        mutant for mutant in all_mutants() if any(text in str(mutant) for text in options.only or [""])
    ]
    if stale := [fault for mutant in mutants for fault in mutant.faults()]:
        print("\n".join(stale), file=sys.stderr)
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        queue, fill = os.pipe()
        os.write(fill, b"".join(number.to_bytes(2) for number in range(len(mutants))))
        os.close(fill)
        workers = []
        for number in range(options.workers):
            folder = copy_tree(Path(name) / str(number))
            if (pid := os.fork()) == 0:
                os._exit(min(255, judge(taken(queue, mutants), folder)))
            workers.append(pid)
        # A worker that was killed has judged nothing.
        survivors = sum(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in workers)
    print(f"{len(mutants)} mutants, {survivors} survived or could not be judged")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
